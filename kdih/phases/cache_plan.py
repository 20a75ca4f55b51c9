"""What a run caches of its teachers: for which methods, which rows, and whether there is room."""
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from kdih import errors
from kdih.cohort import cache
from kdih.cohort.cache import build
from kdih.cohort.members import make_teach
from kdih.config import choices, protocol
from kdih.config.schema import OUTPUTS, TAPS
from kdih.data import augment
from kdih.distillation.signal import LOGITS, Hearing
from kdih.models import taps
from kdih.phases.experiment import Experiment
from kdih.phases.networks import Networks
from kdih.runtime import digests
from kdih.runtime.files import is_remote
from kdih.runtime.workdir import resolved
from kdih.training.task import TeacherOutputs

if TYPE_CHECKING:
  import ml_collections


def serves(config: 'ml_collections.ConfigDict', built: Networks, name: str) -> bool:
  """Returns whether students of the method `name` are taught from a cache."""
  return config.compute.cache != 'none' and built.heard_widths[name] > 0


def check(
    config: 'ml_collections.ConfigDict', built: Networks, path: epath.Path, num_examples: int
) -> None:
  """Raises ConfigError where the config asks for a cache that cannot be; computes nothing.

  Args:
    config: of the run.
    built: its networks.
    path: the workdir of teacher and heads.
    num_examples: size of the train split.
  """
  compute = config.compute
  if compute.cache == 'none':
    if compute.cache_taps:
      raise errors.ConfigError('config.compute.cache_taps: is set, and config.compute.cache is '
                               'none; set that to views:N, or this to False')
    return
  preprocess = augment.of_config(config, choices.fixed_views(compute.cache))
  if preprocess.num_slots > preprocess.num_views:
    raise errors.ConfigError(
        f'config.compute.cache: {compute.cache!r} asks for more views than the augmentation '
        f'can show of an image, which are {preprocess.num_views}; set it to all_views')
  if compute.cache_place == 'disk' and is_remote(path):
    raise errors.ConfigError(f'config.compute.cache_place: {path} is on no disk of this machine; '
                             'choose device or host, or another --workdir')
  widths = _widths(config, built)
  images = num_examples - round(config.data.validation_fraction * num_examples)
  if widths and compute.cache_place != 'disk':  # There it may exist already.
    build.require_room(
        compute.cache_place, build.size((images, preprocess.num_slots, max(widths))), path)


def _widths(config: 'ml_collections.ConfigDict', built: Networks) -> list[int]:
  """Returns numbers in a row of each table that the phases ask for."""
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


def taps_width(built: Networks) -> int:
  """Returns numbers in the features of an image at all taps that carry a head."""
  return sum(math.prod(shape) for shape in built.taps.values())


def hearing(built: Networks, name: str) -> Hearing:
  """Returns what the method `name` hears, which a cache `serves`."""
  return built.methods[name].hearing or LOGITS


def rows(
    built: Networks, names: Sequence[str], teacher: nn.Module
) -> Callable[[Any, jax.Array], tuple[jax.Array, ...]]:
  """Returns (frozen, images) -> rows [batch, width] that each of the methods hears.

  `teacher` is asked once for all of them, and its heads if one of them needs these.
  """
  taught_by = {built.methods[name].taught_by for name in names}
  teach = make_teach('cohort' if 'cohort' in taught_by else 'teacher', teacher, (),
                     built.heads, tuple(built.taps))

  def rows(frozen, images):
    said = *teach(frozen, images), frozen.get('weights', {})
    return tuple(hearing(built, name).rows(*said) for name in names)

  return rows


def tap_rows(
    built: Networks, teacher: nn.Module
) -> Callable[[Any, jax.Array], tuple[jax.Array]]:
  """Returns (frozen, images) -> one table: features at the taps, flattened, one after the other."""
  def rows(frozen, images):
    output, _ = taps.observe(teacher, frozen['teacher'], images, tuple(built.taps))
    return jnp.concatenate(
        [feature.reshape(len(images), -1) for feature in output.features.values()], axis=-1),

  return rows


def taps_kind(built: Networks) -> str:
  """Returns what `tap_rows` are called."""
  return f'features at {", ".join(built.taps)}'


def heard_with(experiment: Experiment, name: str) -> tuple[str, ...]:
  """Returns the method `name`, and others whose cache can be made with its own.

  They hear the same teachers, and are still to be trained.
  """
  config, built, teachers = experiment.config, experiment.networks, experiment.teachers
  if not serves(config, built, name):
    return (name,)
  there = ('teacher', 'cohort') if teachers.result('heads') else ('teacher',)
  return (name, *(
      other for other, method in built.methods.items()
      if other != name and method.taught_by in there and serves(config, built, other)
      and not experiment.workdir.result(f'student/{other}')))


def table(
    experiment: Experiment, names: Sequence[str], teacher: nn.Module, frozen: dict[str, Any]
) -> TeacherOutputs:
  """Returns what the first of the methods hears of the teachers.

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
  built = experiment.networks
  fingerprints = {part: digests.of(variables) for part, variables in frozen.items()}
  wanted: dict[str, tuple[str, build.Table]] = {}  # Methods that hear the same share a table.
  for name in names:
    parts = fingerprints if built.methods[name].taught_by == 'cohort' else {
        'teacher': fingerprints['teacher']}
    found = _wanted(experiment, OUTPUTS, hearing(built, name).name, built.heard_widths[name], parts)
    wanted.setdefault(digests.of_json(found.identity), (name, found))
  chosen = [name for name, _ in wanted.values()]
  return cache.table(_request(experiment, rows(built, chosen, teacher), frozen,
                              tuple(found for _, found in wanted.values())))


def taps_table(experiment: Experiment, teacher: nn.Module, variables: Any) -> TeacherOutputs:
  """Returns the table of `tap_rows`, for the heads alone. Raises ConfigError as `table`."""
  built, frozen = experiment.networks, {'teacher': variables}
  wanted = _wanted(experiment, TAPS, taps_kind(built), taps_width(built),
                   {'teacher': digests.of(variables)})
  made, = build.make(
      _request(experiment, tap_rows(built, teacher), frozen, (wanted,)), cache.forget)
  return made


def _wanted(
    experiment: Experiment, cache_kind: str, kind: str, width: int, fingerprints: dict[str, str]
) -> build.Table:
  """Returns a table of `cache_kind`, one of `schema.CACHES`, with the `kind` of its rows."""
  preprocess, subset = experiment.student_preprocess, experiment.train_subset
  shape = len(subset), preprocess.num_slots, width
  fields = protocol.cached(resolved(experiment.config), cache_kind)
  return build.Table(shape, {
      **{part: fingerprints.get(part, '') for part in ('teacher', 'heads', 'weights')},
      **{f'config.{name}': value for name, value in fields.items()},
      **(experiment.identity.of_cache() if experiment.identity else {}),
      'choice of images': digests.of(subset),
      'augmentation': digests.of_json(dataclasses.asdict(preprocess)),
      'kind of rows': kind, 'shape': list(shape), 'type': build.DTYPE.name})


def _request(
    experiment: Experiment, rows: Callable, frozen: dict[str, Any],
    tables: tuple[build.Table, ...],
) -> build.BuildRequest:
  config = experiment.config
  return build.BuildRequest(
      rows=rows, frozen=frozen, tables=tables, place=config.compute.cache_place,
      folder=experiment.teachers.path, loader=lambda: experiment.splits.loader('train'),
      subset=experiment.train_subset, preprocess=experiment.student_preprocess,
      block=config.data.eval_global_batch_size)
