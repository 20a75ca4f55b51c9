"""What of a config must stay, or be the same, and for what: read off the declared fields.

Configs are nested dicts here, as manifests hold them. A field that one lacks, as that of a run of
an earlier version, has its default. Methods are apart: see `methods`.
"""
from collections.abc import Callable, Mapping
from typing import Any

from kdih.config import fields as fields_lib
from kdih.config.schema import BY_TEACHER, FIXED, FREE, SAME, Compared, Field, Flat, field_of, flat

_UNKNOWN = object()


def fixed(config: Mapping[str, Any], *, student: bool = True) -> Flat:
  """Returns what has to stay for a run to resume, {field: what is compared}.

  Args:
    config: of the run.
    student: with what concerns students alone; without, it is what teacher and heads depend on.
  """
  def chosen(field: Field, values: Flat) -> str | Compared:
    alone = field.student_only(values) if callable(field.student_only) else field.student_only
    return FREE if alone and not student else field.resume

  return _compared(config, chosen, FIXED)


def averaged(config: Mapping[str, Any]) -> Flat:
  """Returns what must be the same for runs to be averaged, beside their teacher."""
  return _compared(config, lambda field, values: field.averaged, SAME)


def swept(config: Mapping[str, Any]) -> Flat:
  """Returns what all runs of a sweep have in common."""
  return _compared(config, lambda field, values: FREE if field.varies else field.averaged,
                   SAME, BY_TEACHER)


def cached(config: Mapping[str, Any], cache: str) -> Flat:
  """Returns what a cache, one of `schema.CACHES`, was made under."""
  return _compared(config, lambda field, values: (
      FREE if cache not in field.caches else field.cached or SAME), SAME)


def described(config: Mapping[str, Any]) -> Flat:
  """Returns what exported variables tell of `config.data`, as {'mean': ..., 'std': ...}."""
  found = _compared(config, lambda field, values: SAME if field.described else FREE, SAME)
  return {name.removeprefix('data.'): value for name, value in found.items()}


def _compared(
    config: Mapping[str, Any], chosen: Callable[[Field, Flat], str | Compared], *kept: str
) -> Flat:
  """Returns the fields whose meaning is among `kept`, or says what of the value is compared."""
  values = {**fields_lib.defaults(),
            **dict(flat({name: value for name, value in config.items() if name != 'methods'}))}
  found: Flat = {}
  for name, value in sorted(values.items()):
    if name in fields_lib.RETIRED:
      continue
    field = field_of(fields_lib.FIELDS, name)
    if field is None:  # Of a later version, or a user's own.
      found[name] = value
      continue
    meaning = chosen(field, values)
    if callable(meaning):
      found[name] = meaning(value, values)
    elif meaning in kept:
      found[name] = field.kind.canonical(value)
  return found


def methods(config: Mapping[str, Any], names: Any) -> Flat:
  """Returns the options of these entries of `config.methods`, and of those that they name.

  As {'methods.dih.alpha': 0.1, ...}, so that it can be compared as fields are.
  """
  found: Flat = {}
  for name in names:
    entries = config.get('methods') or {}
    found |= flat({'methods': {part: entries.get(part, {})
                               for part in (name, *parts(config, name))}})
  return found


def parts(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
  """Returns the names of the entries that an entry of `config.methods` is a sum of."""
  options = (config.get('methods') or {}).get(name)
  named = options.get('methods', ()) if isinstance(options, dict) else ()
  return tuple(part for part in named if isinstance(part, str) and part != name)


def differences(before: Flat, now: Flat) -> list[str]:
  """Returns a text for each field that is not the same: 'config.seed (was 30, is 50)'."""
  return [f'config.{name} (was {before.get(name)!r}, is {now.get(name)!r})'
          for name in sorted(before.keys() | now.keys())
          if before.get(name, _UNKNOWN) != now.get(name, _UNKNOWN)]
