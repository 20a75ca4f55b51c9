"""Selects the fields of a config that are compared to resume, to average, or to use a cache.

The selection follows from the declarations in `fields.FIELDS`. Configs are nested dicts here, as
manifests hold them. A field that is missing, for instance because an earlier version wrote the
manifest, has its default. The options of methods are compared separately, by `methods`.
"""
from collections.abc import Callable, Mapping
from typing import Any

from kdih.config import fields as fields_lib
from kdih.config.schema import BY_TEACHER, FIXED, FREE, SAME, Compared, Field, Flat, field_of, flat

_UNKNOWN = object()


def fixed(config: Mapping[str, Any], *, student: bool = True) -> Flat:
  """Returns {field: what is compared} of the fields that must not change when a run resumes.

  Args:
    config: the config of the run.
    student: whether to include the fields on which only students depend.
  """
  def meaning(field: Field, values: Flat) -> str | Compared:
    only = field.student_only(values) if callable(field.student_only) else field.student_only
    return FREE if only and not student else field.resume

  return _compared(config, meaning, FIXED)


def averaged(config: Mapping[str, Any]) -> Flat:
  """Returns the fields that must be equal for runs with equal teachers to be averaged."""
  return _compared(config, lambda field, values: field.averaged, SAME)


def swept(config: Mapping[str, Any]) -> Flat:
  """Returns the fields that are equal in all runs of a sweep."""
  return _compared(config, lambda field, values: FREE if field.varies else field.averaged,
                   SAME, BY_TEACHER)


def cached(config: Mapping[str, Any], cache: str) -> Flat:
  """Returns the fields on which a cache, one of `schema.CACHES`, depends."""
  return _compared(config, lambda field, values: (
      FREE if cache not in field.caches else field.cached or SAME), SAME)


def described(config: Mapping[str, Any]) -> Flat:
  """Returns the fields of `config.data` that are stored with exported variables, as {'mean': ...}.
  """
  fields = _compared(config, lambda field, values: SAME if field.described else FREE, SAME)
  return {name.removeprefix('data.'): value for name, value in fields.items()}


def _compared(
    config: Mapping[str, Any], meaning_of: Callable[[Field, Flat], str | Compared], *kept: str
) -> Flat:
  """Returns the fields whose meaning is one of `kept`, or a function that the value is passed to.
  """
  values = {**fields_lib.defaults(),
            **dict(flat({name: value for name, value in config.items() if name != 'methods'}))}
  compared: Flat = {}
  for name, value in sorted(values.items()):
    if name in fields_lib.RETIRED:
      continue
    field = field_of(fields_lib.FIELDS, name)
    if field is None:  # A field of a later version, or the user's own.
      compared[name] = value
      continue
    meaning = meaning_of(field, values)
    if callable(meaning):
      compared[name] = meaning(value, values)
    elif meaning in kept:
      compared[name] = field.kind.canonical(value)
  return compared


def methods(config: Mapping[str, Any], names: Any) -> Flat:
  """Returns the options of some entries of `config.methods` and of the entries that they sum.

  The names are those of fields, {'methods.dih.alpha': 0.1, ...}.
  """
  options: Flat = {}
  for name in names:
    entries = config.get('methods') or {}
    options |= flat({'methods': {part: entries.get(part, {})
                                 for part in (name, *parts(config, name))}})
  return options


def parts(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
  """Returns the names of the entries of `config.methods` whose losses an entry sums."""
  options = (config.get('methods') or {}).get(name)
  named = options.get('methods', ()) if isinstance(options, dict) else ()
  return tuple(part for part in named if isinstance(part, str) and part != name)


def differences(before: Flat, now: Flat) -> list[str]:
  """Returns a text for each field that differs, such as 'config.seed (was 30, is 50)'."""
  return [f'config.{name} (was {before.get(name)!r}, is {now.get(name)!r})'
          for name in sorted(before.keys() | now.keys())
          if before.get(name, _UNKNOWN) != now.get(name, _UNKNOWN)]
