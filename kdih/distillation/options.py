"""Types of the options that several methods have in common.

A method declares an option as a field of one of these types; `kdih.methods.create` checks its
value.
"""
from typing import Annotated

from kdih.config.values import NAME, Flag as _Flag, Many, Number, OneOrMany, Whole

_ALPHA = Number(0, 1)
_TEMPERATURE = Number(1e-3, 1e3)

Alpha = Annotated[float, _ALPHA]  # Weight of the teacher; the labels have 1 - alpha.
Temperature = Annotated[float, _TEMPERATURE]
AlphaPerMember = Annotated[float | tuple[float, ...], OneOrMany(_ALPHA)]
TemperaturePerMember = Annotated[float | tuple[float, ...], OneOrMany(_TEMPERATURE)]
Weight = Annotated[float, Number(0, 1e9)]  # Weight of a term; 0 leaves the term out.
PositiveWeight = Annotated[float, Number(0, 1e9, open_low=True)]
Epochs = Annotated[float, Number(0, 1e7)]
Width = Annotated[int, Whole(1, 65536)]  # Channels of a layer.
Flag = Annotated[bool, _Flag()]
Names = Annotated[tuple[str, ...], Many(NAME, least=1)]


def per_member(
    option: str, value: float | tuple[float, ...], num_members: int
) -> tuple[float, ...]:
  """Returns one number for each member of the cohort.

  Args:
    option: name of the option, for the error.
    value: one number for all members, or a number for each.
    num_members: size of the cohort.

  Raises:
    ValueError: `value` holds neither 1 nor `num_members` numbers.
  """
  values = tuple(value) if isinstance(value, list | tuple) else (value,)
  if len(values) == 1:
    return values * num_members
  if len(values) != num_members:
    raise ValueError(f'{option}: has {len(values)} numbers; give one, or one for each of the '
                     f'{num_members} members (heads in tap order, then the teacher)')
  return values
