"""The ways to teach the student, one file each: `kdih/methods/README.md` lists them.

The file `kdih/methods/<kind>.py` defines a class `Method`, derived from
`kdih.distillation.method.Method`. The fields of the class are its options, and an entry
`config.methods.<name>` sets `kind` and every option. A new file is found by its name.
"""
import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from kdih import errors
from kdih.config.values import RATE, Kind, Plain
from kdih.distillation.method import Context, Method

_COMMON = {'learning_rate': RATE}  # Optional in the entries of every kind.


def names() -> tuple[str, ...]:
  """Returns the kinds of methods, sorted: the names of the files in this folder."""
  return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def option_kinds(kind: str) -> dict[str, Kind]:
  """Returns the allowed values of each option of a kind of method, from the field's annotation."""
  cls = importlib.import_module(f'{__name__}.{kind}').Method
  return {field.name: getattr(field.type, '__metadata__', (Plain(),))[0]
          for field in dataclasses.fields(cls) if field.name not in ('context', 'parent', 'name')}


def check(methods: Mapping[str, Mapping[str, Any]]) -> None:
  """Checks the options of every entry of `config.methods`, including entries that are not used.

  Raises:
    ConfigError: the kind is unknown, or an option is missing, unknown or has a wrong value.
  """
  for name, options in methods.items():
    _check_options(f'config.methods.{name}', options)
    for part in options.get('methods', ()):  # The parts of a sum.
      if part not in methods:
        raise errors.unknown(f'config.methods.{name}.methods', part, methods)


def _check_options(setting: str, options: Mapping[str, Any]) -> None:
  if options.get('kind') not in names():
    raise errors.unknown(f'{setting}.kind', str(options.get('kind')), names())
  kinds = option_kinds(options['kind'])
  for option in sorted(options.keys() - kinds.keys() - _COMMON.keys() - {'kind'}):
    raise errors.unknown(f'{setting}.{option}', option, kinds | _COMMON)
  for option in sorted(kinds.keys() - options.keys()):
    raise errors.ConfigError(
        f'{setting}.{option}: is not set; the kind {options["kind"]!r} needs it')
  for option, kind in (kinds | _COMMON).items():
    if option in options:
      kind.check(f'{setting}.{option}', options[option])


def create(name: str, options: Mapping[str, Any], context: Context) -> Method:
  """Returns the method that the entry `config.methods.<name>` describes.

  Args:
    name: name of the entry, for error messages.
    options: the entry: `kind`, every option of that kind, and optionally a `learning_rate`, which
      the optimizer reads.
    context: the run that the method is created for.

  Raises:
    ConfigError: as `check`; or the options do not fit together or do not fit the context.
  """
  _check_options(f'config.methods.{name}', options)
  cls = importlib.import_module(f'{__name__}.{options["kind"]}').Method
  method = cls(context=context, **{
      option: tuple(value) if isinstance(value, list) else value
      for option, value in options.items() if option not in ('kind', *_COMMON)})
  try:
    method.check()
  except ValueError as error:
    named = str(error).startswith('config.')  # The message is about another entry.
    raise errors.ConfigError(str(error) if named else f'config.methods.{name}.{error}') from None
  return method
