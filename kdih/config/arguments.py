"""The argument of a config file: `--config=configs/cifar100.py:runlocal,recipe=repdistiller`."""
import ml_collections

from kdih import errors


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Returns the argument of a config file, such as `runlocal,recipe=repdistiller`, as fields.

  Args:
    arg: `key=value` items, separated by commas; `key` alone sets a flag to True.
    **defaults: all keys with their defaults, which determine the types of the values.

  Raises:
    ConfigError: a key is not among the defaults, or a value has another type.
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
      raise errors.ConfigError(
          f"the config's argument {key}: is {text!r}; it must be true or false")
    return text.lower() != 'false'
  try:
    return kind(text)
  except ValueError:
    raise errors.ConfigError(
        f"the config's argument {key}: is {text!r}; it must be "
        f"{'a whole number' if kind is int else 'a number'}") from None
