"""What a field of the config is, and what changing it means.

`fields.FIELDS` declares every field once; what a run may change when it resumes, which runs a
report averages, and what a cache of teachers' outputs was made with are read from there.

A config is a nested dict here, as a manifest holds it, or a flat one: {'data.name': 'digits'}.
"""
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdih.config.values import Kind

Flat = dict[str, Any]
# Of a value, and of all fields of its config, to what is compared in its place.
Compared = Callable[[Any, Mapping[str, Any]], Any]

FREE, FIXED, SAME, BY_TEACHER = 'free', 'fixed', 'same', 'by the teacher'
OUTPUTS, TAPS = 'outputs', 'taps'  # The caches: of what teachers say, of features at the taps.
CACHES = (OUTPUTS, TAPS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One field.

  Attributes:
    default: after the paper's recipe.
    kind: of its values.
    doc: what it does, for people.
    resume: `FIXED` where a run resumes with the same value only; `FREE` where it may change; or
      what of the value must stay.
    averaged: `SAME` where runs are averaged that have the same value only; `FREE` where it may
      differ; `BY_TEACHER` where it does all it does through the teacher, whose fingerprint is
      compared; or what of the value must be the same.
    caches: those of `CACHES` that are of no use under another value.
    cached: what of the value counts for that; all of it where this is None.
    student_only: whether teacher and heads do not depend on it; a function of all fields of the
      config where these decide.
    described: whether exported variables tell it of the data set that they are of.
    varies: whether the runs of one sweep differ in it.
  """

  default: Any
  kind: Kind
  doc: str
  resume: str | Compared = FIXED
  averaged: str | Compared = SAME
  caches: tuple[str, ...] = ()
  cached: Compared | None = None
  student_only: bool | Callable[[Mapping[str, Any]], bool] = False
  described: bool = False
  varies: bool = False


Fields = Mapping[str, Field]


def flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (name, value) of every leaf of a nested config; names are joined by dots."""
  for key, value in config.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def nested(config: Flat) -> dict[str, Any]:
  """Returns a flat config as nested dicts."""
  tree: dict[str, Any] = {}
  for name, value in config.items():
    *groups, key = name.split('.')
    group = tree
    for part in groups:
      group = group.setdefault(part, {})
    group[key] = value
  return tree


def field_of(fields: Fields, name: str) -> Field | None:
  """Returns the field that a leaf belongs to: 'student.kwargs.width' to 'student.kwargs'."""
  while name not in fields and '.' in name:
    name = name.rpartition('.')[0]
  return fields.get(name)
