"""Ways to teach the student, one file each; a new one is a new file, found by its name.

The file `kdih/methods/<kind>.py` holds a frozen dataclass `Method`. Its first field is
`num_members`, the size of the cohort; the others are its options, all of which
`config.methods.<name>` sets, next to `kind`. Its `__post_init__` raises ValueError where an option
is wrong, with a line that begins with the option's name.
"""
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from kdih import errors


class Method(Protocol):
  """How the student is taught."""

  taught_by: ClassVar[str]  # 'labels', 'teacher' or 'cohort'.

  def loss(
      self, student: jax.Array, members: Mapping[str, jax.Array], labels: jax.Array
  ) -> jax.Array:
    """The loss per example, [batch].

    Args:
      student: logits [batch, classes].
      members: logits of the members that `taught_by` asks for, heads first, then `final`.
      labels: int [batch].
    """


def names() -> tuple[str, ...]:
  """Every kind of method."""
  return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def create(name: str, options: Mapping[str, Any], num_members: int) -> Method:
  """The method that `config.methods.<name>` describes.

  Args:
    name: for messages.
    options: `kind`, and every option of that kind.
    num_members: size of the cohort, the teacher's own classifier included.

  Raises:
    ConfigError: an unknown kind, or an option that is missing, unknown or out of range.
  """
  setting = f'config.methods.{name}'
  options = dict(options)
  kind = options.pop('kind', None)
  if kind not in names():
    raise errors.unknown(f'{setting}.kind', kind, names())
  cls = importlib.import_module(f'{__name__}.{kind}').Method
  fields = {field.name for field in dataclasses.fields(cls)} - {'num_members'}
  for option in options.keys() - fields:
    raise errors.unknown(f'{setting}.{option}', option, fields)
  for option in fields - options.keys():
    raise errors.ConfigError(f'{setting}.{option}: is not set; the kind {kind!r} needs it')
  try:
    return cls(num_members=num_members, **options)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'{setting}.{error}') from None
