"""The argument of a config file: `--config=configs/cifar100.py:runlocal,recipe=repdistiller`."""
import ml_collections

from kdih import errors


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Returns the argument of a config, `runlocal,recipe=repdistiller`, as fields.

  Args:
    arg: comma-separated `key=value`, or `key` alone to switch a flag on.
    **defaults: every key the config knows; a value is read as its default's type.

  Raises:
    ConfigError: a key that is not among the defaults, or a value of another type.
  """
  fields = ml_collections.ConfigDict(defaults)
  for item in filter(None, (arg or '').split(',')):
    key, _, value = item.partition('=')
    if key not in defaults:
      raise errors.unknown("the config's argument", key, defaults)
    fields[key] = _read(key, value, type(defaults[key]))
  return fields


def _read(key: str, text: str, kind: type):
  if kind is bool:
    if text.lower() not in ('', 'true', 'false'):
      raise errors.ConfigError(f"the config's argument {key}: {text!r} is neither true nor false")
    return text.lower() != 'false'
  try:
    return kind(text)
  except ValueError:
    raise errors.ConfigError(
        f"the config's argument {key}: {text!r} is not of type {kind.__name__}") from None
