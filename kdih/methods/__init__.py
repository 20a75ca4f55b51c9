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
from kdih.config.values import RATE, Kind, Plain
from kdih.distillation.method import Context, Method

_OF_ANY = {'learning_rate': RATE}  # Options of every kind, which need not be set.


def names() -> tuple[str, ...]:
  """Returns every kind of method."""
  return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def option_kinds(kind: str) -> dict[str, Kind]:
  """Returns which values each option of a kind of method takes: what its type is annotated with."""
  cls = importlib.import_module(f'{__name__}.{kind}').Method
  return {field.name: getattr(field.type, '__metadata__', (Plain(),))[0]
          for field in dataclasses.fields(cls) if field.name not in ('context', 'parent', 'name')}


def check(methods: Mapping[str, Mapping[str, Any]]) -> None:
  """Checks the options of every entry of `config.methods`, used or not.

  Raises:
    ConfigError: an unknown kind, or an option that is missing, unknown or has a wrong value.
  """
  for name, options in methods.items():
    _check_options(f'config.methods.{name}', options)
    for part in options.get('methods', ()):  # Those that it is a sum of.
      if part not in methods:
        raise errors.unknown(f'config.methods.{name}.methods', part, methods)


def _check_options(setting: str, options: Mapping[str, Any]) -> None:
  if options.get('kind') not in names():
    raise errors.unknown(f'{setting}.kind', str(options.get('kind')), names())
  kinds = option_kinds(options['kind'])
  for option in sorted(options.keys() - kinds.keys() - _OF_ANY.keys() - {'kind'}):
    raise errors.unknown(f'{setting}.{option}', option, kinds | _OF_ANY)
  for option in sorted(kinds.keys() - options.keys()):
    raise errors.ConfigError(
        f'{setting}.{option}: is not set; the kind {options["kind"]!r} needs it')
  for option, kind in (kinds | _OF_ANY).items():
    if option in options:
      kind.check(f'{setting}.{option}', options[option])


def create(name: str, options: Mapping[str, Any], context: Context) -> Method:
  """Returns the method that `config.methods.<name>` describes.

  Args:
    name: for messages.
    options: `kind`, and every option of that kind; perhaps a `learning_rate`, which is not the
      method's own.
    context: what it is made for.

  Raises:
    ConfigError: as `check` does; or options that do not fit together, or not the context.
  """
  _check_options(f'config.methods.{name}', options)
  cls = importlib.import_module(f'{__name__}.{options["kind"]}').Method
  method = cls(context=context, **{
      option: tuple(value) if isinstance(value, list) else value
      for option, value in options.items() if option not in ('kind', *_OF_ANY)})
  try:
    method.check()
  except ValueError as error:
    named = str(error).startswith('config.')  # Of another entry.
    raise errors.ConfigError(str(error) if named else f'config.methods.{name}.{error}') from None
  return method
