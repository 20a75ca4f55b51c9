"""Ways to teach the student, one file each; a new one is a new file, found by its name.

The file `kdih/methods/<kind>.py` holds a class `Method`, derived from that of
`kdih.distillation.method`. Its fields are its options, all of which `config.methods.<name>` sets,
next to `kind`.
"""
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from kdih import errors
from kdih.distillation.method import Context, Method
from kdih.distillation.options import check_positive


def names() -> tuple[str, ...]:
  """Every kind of method."""
  return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def create(name: str, options: Mapping[str, Any], context: Context) -> Method:
  """The method that `config.methods.<name>` describes.

  Args:
    name: for messages.
    options: `kind`, and every option of that kind; perhaps a `learning_rate`, which is checked,
      and not the method's own.
    context: what it is made for.

  Raises:
    ConfigError: an unknown kind, or an option that is missing, unknown or out of range.
  """
  setting = f'config.methods.{name}'
  options = {key: tuple(value) if isinstance(value, list) else value
             for key, value in options.items()}
  kind = options.pop('kind', None)
  rate = options.pop('learning_rate', 1.0)
  if kind not in names():
    raise errors.unknown(f'{setting}.kind', kind, names())
  cls = importlib.import_module(f'{__name__}.{kind}').Method
  fields = {field.name for field in dataclasses.fields(cls)} - {'context', 'parent', 'name'}
  for option in sorted(options.keys() - fields):
    raise errors.unknown(f'{setting}.{option}', option, fields)
  for option in sorted(fields - options.keys()):
    raise errors.ConfigError(f'{setting}.{option}: is not set; the kind {kind!r} needs it')
  method = cls(context=context, **options)
  try:
    check_positive('learning_rate', rate)
    method.check()
  except ValueError as error:
    named = str(error).startswith('config.')  # Of another entry.
    raise errors.ConfigError(str(error) if named else f'{setting}.{error}') from None
  except Exception as error:  # Numbers where names are needed, and the like.
    raise errors.ConfigError(f'{setting}: its options cannot be used: '
                             f'{errors.first_line(error)}') from error
  return method
