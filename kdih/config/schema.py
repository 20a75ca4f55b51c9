"""The declaration of a config field: default, values, and what a change of the field means.

`fields.FIELDS` declares every field once. From these declarations follow the fields that a run may
change when it resumes, the runs that a report averages, and the description of a teacher cache.

A config is a nested dict here, as a manifest holds it, or a flat dict: {'data.name': 'digits'}.
"""
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdih.config.values import Kind

Flat = dict[str, Any]
# A function (value, all fields of the config) -> the value that is compared in its place.
Compared = Callable[[Any, Mapping[str, Any]], Any]

FREE, FIXED, SAME, BY_TEACHER = 'free', 'fixed', 'same', 'by the teacher'
OUTPUTS, TAPS = 'outputs', 'taps'  # The caches: logits or soft labels, and features at the taps.
CACHES = (OUTPUTS, TAPS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """The declaration of a field.

  Attributes:
    default: the default by the paper's recipe.
    kind: the values that it accepts.
    doc: its documentation.
    resume: `FIXED` if a run can resume only with the same value, `FREE` if the value may change,
      or a function that returns what is compared.
    averaged: `SAME` if only runs with the same value are averaged, `FREE` if the values may differ,
      `BY_TEACHER` if the field has an effect only through the teacher, whose fingerprint is
      compared, or a function that returns what is compared.
    caches: those of `CACHES` that depend on the field.
    cached: returns what is compared for a cache; None compares the value.
    student_only: whether only students depend on the field; a function of all fields of the config
      if that depends on other fields.
    described: whether the field is stored with exported variables, as a description of their data.
    varies: whether the runs of one sweep may differ in the field.
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
  """Yields (name, value) of every leaf of a nested config; a name joins its keys by dots."""
  for key, value in config.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def nested(config: Flat) -> dict[str, Any]:
  """Returns the nested dicts of a flat config."""
  tree: dict[str, Any] = {}
  for name, value in config.items():
    *groups, key = name.split('.')
    group = tree
    for part in groups:
      group = group.setdefault(part, {})
    group[key] = value
  return tree


def field_of(fields: Fields, name: str) -> Field | None:
  """Returns the field of a leaf: that of 'student.kwargs' for 'student.kwargs.width'."""
  while name not in fields and '.' in name:
    name = name.rpartition('.')[0]
  return fields.get(name)
