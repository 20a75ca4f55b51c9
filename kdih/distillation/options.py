"""Checks of the options that methods share; each error begins with the option's name."""
from collections.abc import Sequence

from kdih import errors

PerBranch = float | tuple[float, ...]


def check_alpha(alpha: PerBranch) -> None:
  """Raises ValueError unless every weight is in [0, 1]."""
  for a in _numbers('alpha', alpha):
    if not 0 <= a <= 1:
      raise ValueError(f'alpha: {a} is outside [0, 1]; 0.1 is the paper\'s')


def check_temperature(temperature: PerBranch) -> None:
  """Raises ValueError unless every temperature is positive and finite."""
  for t in _numbers('temperature', temperature):
    if not 0 < t < float('inf'):
      raise ValueError(f'temperature: {t} is not above 0; 5 is the paper\'s')


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
  """Raises ValueError unless `value` is one of `choices`."""
  if value not in choices:
    raise errors.unknown(option, value, choices)


def per_branch(option: str, value: PerBranch, num_members: int) -> tuple[float, ...]:
  """One number per member; a single number serves all. Raises ValueError on another count."""
  values = _numbers(option, value)
  if len(values) == 1:
    return values * num_members
  if len(values) != num_members:
    raise ValueError(f'{option}: has {len(values)} numbers; give one, or one for each of the '
                     f'{num_members} members (heads in tap order, then the teacher)')
  return values


def check_single(option: str, value: PerBranch) -> None:
  """Raises ValueError unless `value` is one number."""
  if isinstance(value, list | tuple):
    raise ValueError(f'{option}: is {value!r}; give one number, for the one teacher')


def check_positive(option: str, value: float) -> None:
  """Raises ValueError unless `value` is a number above 0, and finite."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f'{option}: {value!r} is not a number')
  if not 0 < value < float('inf'):
    raise ValueError(f'{option}: {value} is not above 0')


def check_flag(option: str, value: bool) -> None:
  """Raises ValueError unless `value` is True or False."""
  if not isinstance(value, bool):
    raise ValueError(f'{option}: {value!r} is neither True nor False')


def _numbers(option: str, value: PerBranch) -> tuple[float, ...]:
  values = tuple(value) if isinstance(value, list | tuple) else (value,)
  for item in values:
    if isinstance(item, bool) or not isinstance(item, int | float):
      raise ValueError(f'{option}: {item!r} is not a number')
  return values
