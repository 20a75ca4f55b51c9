"""What teachers say of every view of the training images, computed once for all students.

`config.compute.cache` asks for it. Rows are float16: of logits and of probabilities it keeps 11
bits, bfloat16 8.
"""
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from kdih import (
  cache_tables as tables,
  config_compute,
  data,
  errors,
  fingerprint,
  heard,
  taps as taps_lib,
  tasks,
  teaching,
)
from kdih.experiment import Experiment
from kdih.modules import Modules
from kdih.workdir import is_remote

_kept: dict[str, tuple[dict, heard.NoTable]] = {}  # Tables of one teacher, for the next student.


def serves(config: ml_collections.ConfigDict, built: Modules, name: str) -> bool:
  """Whether students of the method `name` are taught from a cache."""
  return config.compute.cache != 'none' and built.heard_widths[name] > 0


def check(
    config: ml_collections.ConfigDict, built: Modules, path: epath.Path, num_examples: int
) -> None:
  """Raises ConfigError where the config asks for a cache that cannot be; computes nothing.

  Args:
    config: of the run.
    built: its modules.
    path: the workdir of teacher and heads.
    num_examples: size of the train split.
  """
  compute = config.compute
  if compute.cache == 'none':
    if compute.cache_taps:
      raise errors.ConfigError('config.compute.cache_taps: is set, and config.compute.cache is '
                               'none; set that to views:N, or this to False')
    return
  preprocess = data.of_config(config, config_compute.fixed_views(compute.cache))
  if preprocess.num_slots > preprocess.num_views:
    raise errors.ConfigError(
        f'config.compute.cache: {compute.cache!r} asks for more views than the augmentation '
        f'can show of an image, which are {preprocess.num_views}; set it to all_views')
  _check_place(config, path)
  widths = _widths(config, built)
  images = num_examples - round(config.data.validation_fraction * num_examples)
  if widths and compute.cache_place != 'disk':  # There it may exist already.
    tables.require_room(
        compute.cache_place, tables.size((images, preprocess.num_slots, max(widths))), path)


def _widths(config: ml_collections.ConfigDict, built: Modules) -> list[int]:
  """Numbers in a row of each table that the phases ask for."""
  widths = []
  if 'heads' in config.phases and config.compute.cache_taps and not config.heads.variables:
    widths.append(taps_width(built))
  if 'student' in config.phases:
    taught = [name for name, method in built.methods.items() if method.taught_by != 'labels']
    served = [built.heard_widths[name] for name in taught if serves(config, built, name)]
    if taught and not served:
      raise errors.ConfigError(
          f'config.compute.cache: the method {", ".join(taught)} needs more of the teacher than '
          'logits, which is all that can be cached; set it to none')
    widths += served
  return widths


def taps_width(built: Modules) -> int:
  """Numbers in the features of an image at all taps that carry a head."""
  return sum(math.prod(shape) for shape in built.taps.values())


def _check_place(config: ml_collections.ConfigDict, path: epath.Path) -> None:
  if config.compute.cache_place == 'disk' and is_remote(path):
    raise errors.ConfigError(f'config.compute.cache_place: {path} is on no disk of this machine; '
                             'choose device or host, or another --workdir')


def hearing(built: Modules, name: str) -> teaching.Hearing:
  """What the method `name` hears, which a cache `serves`."""
  return built.methods[name].hearing or teaching.LOGITS


def rows(
    built: Modules, names: Sequence[str], teacher: nn.Module
) -> Callable[[Any, jax.Array], tuple[jax.Array, ...]]:
  """(frozen, images) to the rows [batch, width] that each of the methods hears.

  `teacher` is asked once for all of them, and its heads if one of them needs these.
  """
  taught_by = {built.methods[name].taught_by for name in names}
  teach = tasks.make_teach('cohort' if 'cohort' in taught_by else 'teacher', teacher, (),
                           built.heads, tuple(built.taps))

  def rows(frozen, images):
    said = *teach(frozen, images), frozen.get('weights', {})
    return tuple(hearing(built, name).rows(*said) for name in names)

  return rows


def tap_rows(
    built: Modules, teacher: nn.Module
) -> Callable[[Any, jax.Array], tuple[jax.Array]]:
  """(frozen, images) to the features at the taps, flattened, one behind the other; one table."""
  def rows(frozen, images):
    output, _ = taps_lib.observe(teacher, frozen['teacher'], images, tuple(built.taps))
    return jnp.concatenate(
        [feature.reshape(len(images), -1) for feature in output.features.values()], axis=-1),

  return rows


def taps_kind(built: Modules) -> str:
  """What `tap_rows` are called."""
  return f'features at {", ".join(built.taps)}'


def heard_with(experiment: Experiment, name: str) -> tuple[str, ...]:
  """The method `name`, and others whose cache can be made with its own.

  They hear the same teachers, and are still to be trained.
  """
  config, built, teachers = experiment.config, experiment.modules, experiment.teachers
  if not serves(config, built, name):
    return (name,)
  there = ('teacher', 'cohort') if teachers.result('heads') else ('teacher',)
  return (name, *(
      other for other, method in built.methods.items()
      if other != name and method.taught_by in there and serves(config, built, other)
      and not experiment.workdir.result(f'student/{other}')))


def table(
    experiment: Experiment, names: Sequence[str], teacher: nn.Module, frozen: dict[str, Any]
) -> heard.NoTable:
  """What the first of the methods hears of the teachers.

  It is kept in this process for other students; so is what the other methods hear, as far as there
  is room.

  Args:
    experiment: the run.
    names: from `heard_with`.
    teacher: the module of the teacher.
    frozen: {'teacher', 'heads', 'weights'}, as far as the methods are taught by them.

  Raises:
    ConfigError: there is no room for it, or one on the disk does not serve.
  """
  built, place = experiment.modules, experiment.config.compute.cache_place
  fingerprints = {part: fingerprint.of(variables) for part, variables in frozen.items()}
  for key, (identity, _) in list(_kept.items()):
    if identity['teacher'] != fingerprints['teacher']:
      del _kept[key]
  wanted: dict[str, tuple[str, tables.Table]] = {}
  for name in names:
    parts = fingerprints if built.methods[name].taught_by == 'cohort' else {
        'teacher': fingerprints['teacher']}
    found = _wanted(experiment, hearing(built, name).name, built.heard_widths[name], parts)
    wanted.setdefault(fingerprint.of_json([found.identity, place]), (name, found))
  first, missing = next(iter(wanted)), [key for key in wanted if key not in _kept]
  if first in missing:
    chosen = [wanted[key][0] for key in missing]
    order = tables.Order(experiment, rows(built, chosen, teacher), frozen,
                         tuple(wanted[key][1] for key in missing))
    for key, made in zip(missing, tables.make(order, forget), strict=False):
      _kept[key] = wanted[key][1].identity, made
  return _kept[first][1]


def taps_table(experiment: Experiment, teacher: nn.Module, variables: Any) -> heard.NoTable:
  """The table of `tap_rows`, for the heads alone. Raises ConfigError as `table`."""
  built, frozen = experiment.modules, {'teacher': variables}
  wanted = _wanted(experiment, taps_kind(built), taps_width(built),
                   {'teacher': fingerprint.of(variables)})
  made, = tables.make(
      tables.Order(experiment, tap_rows(built, teacher), frozen, (wanted,)), forget)
  return made


def forget() -> None:
  """Drops every table that is kept in this process."""
  _kept.clear()


def _wanted(
    experiment: Experiment, kind: str, width: int, fingerprints: dict[str, str]
) -> tables.Table:
  preprocess, subset = experiment.student_preprocess, experiment.train_subset
  shape = len(subset), preprocess.num_slots, width
  return tables.Table(shape, {
      **{part: fingerprints.get(part, '') for part in ('teacher', 'heads', 'weights')},
      'data set': experiment.data_identity,
      'folder': experiment.config.data.folder, 'choice of images': fingerprint.of(subset),
      'augmentation': fingerprint.of_json(dataclasses.asdict(preprocess)),
      'kind of rows': kind, 'shape': list(shape), 'type': tables.DTYPE.name,
      'dtype of the teacher': [experiment.config.dtype, experiment.config.compute.teacher_dtype]})
