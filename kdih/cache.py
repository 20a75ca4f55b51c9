"""What teachers say of every view of the training images, computed once for all students.

`config.compute.cache` asks for it. Rows are float16: of logits and of probabilities it keeps 11
bits, bfloat16 8.
"""
import dataclasses
import math
from collections.abc import Callable
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
  modules,
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
  return config.compute.cache != 'none' and modules.heard_width(built, name) > 0


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
    served = [modules.heard_width(built, name) for name in taught if serves(config, built, name)]
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


def rows(built: Modules, name: str, teacher: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
  """(frozen, images) to the rows [batch, width] that the method `name` hears of `teacher`."""
  teach = tasks.make_teach(
      built.methods[name].taught_by, teacher, (), built.heads, tuple(built.taps))
  return lambda frozen, images: hearing(built, name).rows(
      *teach(frozen, images), frozen.get('weights', {}))


def tap_rows(built: Modules, teacher: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
  """(frozen, images) to the features at the taps, flattened, one behind the other."""
  def rows(frozen, images):
    output, _ = taps_lib.observe(teacher, frozen['teacher'], images, tuple(built.taps))
    return jnp.concatenate(
        [feature.reshape(len(images), -1) for feature in output.features.values()], axis=-1)

  return rows


def taps_kind(built: Modules) -> str:
  """What `tap_rows` are called."""
  return f'features at {", ".join(built.taps)}'


def table(
    experiment: Experiment, name: str, teacher: nn.Module, frozen: dict[str, Any]
) -> heard.NoTable:
  """What the method `name` hears of the teachers, kept in this process for other students.

  Args:
    experiment: the run.
    name: of the method, which `serves`.
    teacher: the module of the teacher.
    frozen: {'teacher', 'heads', 'weights'}, as far as it is taught by them.

  Raises:
    ConfigError: there is no room for it, or the one on disk does not serve.
  """
  built = experiment.modules
  order = _order(experiment, hearing(built, name).name, modules.heard_width(built, name), frozen,
                 rows(built, name, teacher))
  key = fingerprint.of_json([order.identity, order.place])
  for other, (identity, _) in list(_kept.items()):
    if identity['teacher'] != order.identity['teacher']:
      del _kept[other]
  if key not in _kept:
    _kept[key] = order.identity, tables.make(order, forget)
  return _kept[key][1]


def taps_table(experiment: Experiment, teacher: nn.Module, variables: Any) -> heard.NoTable:
  """The table of `tap_rows`, for the heads alone. Raises ConfigError as `table`."""
  built = experiment.modules
  return tables.make(_order(experiment, taps_kind(built), taps_width(built),
                            {'teacher': variables}, tap_rows(built, teacher)), forget)


def forget() -> None:
  """Drops every table that is kept in this process."""
  _kept.clear()


def _order(
    experiment: Experiment, kind: str, width: int, frozen: dict[str, Any], rows: Callable
) -> tables.Order:
  preprocess, subset = experiment.student_preprocess, experiment.train_subset
  shape = len(subset), preprocess.num_slots, width
  return tables.Order(experiment, rows, frozen, shape, {
      **{part: fingerprint.of(frozen[part]) if part in frozen else ''
         for part in ('teacher', 'heads', 'weights')},
      'data set': experiment.data_identity,
      'folder': experiment.config.data.folder, 'choice of images': fingerprint.of(subset),
      'augmentation': fingerprint.of_json(dataclasses.asdict(preprocess)),
      'kind of rows': kind, 'shape': list(shape), 'type': tables.DTYPE.name,
      'dtype of the teacher': [experiment.config.dtype, experiment.config.compute.teacher_dtype]})
