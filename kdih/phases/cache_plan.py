"""What a run caches of its teachers: for which methods, what of their signal, and whether there is
room."""
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from kdih import errors
from kdih.cohort import cache
from kdih.cohort.cache import build, rows
from kdih.cohort.members import Teach, make_teach
from kdih.config import choices, protocol
from kdih.config.schema import OUTPUTS, TAPS
from kdih.data import augment
from kdih.distillation.signal import Summary, TeacherSignal
from kdih.phases.experiment import Experiment
from kdih.phases.networks import Networks
from kdih.runtime import digests
from kdih.runtime.files import is_remote
from kdih.runtime.workdir import resolved
from kdih.training.task import Signals

if TYPE_CHECKING:
  import ml_collections


def serves(config: 'ml_collections.ConfigDict', built: Networks, name: str) -> bool:
  """Returns whether students of the method `name` are taught from a cache."""
  return config.compute.cache != 'none' and name in built.cached_signals


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
    for switch, kinds in (('cache_taps', 'views:N'), ('cache_members', 'all_views or views:N')):
      if compute[switch]:
        raise errors.ConfigError(f'config.compute.{switch}: is set, and config.compute.cache is '
                                 f'none; set that to {kinds}, or this to False')
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
    widths.append(rows.width(taps_signal(built)))
  if 'student' in config.phases:
    taught = [name for name, method in built.methods.items() if method.taught_by != 'labels']
    served = [rows.width(built.cached_signals[name]) for name in taught
              if serves(config, built, name)]
    if taught and not served:
      raise errors.ConfigError(
          f'config.compute.cache: the method {", ".join(taught)} needs more of the teacher than '
          'logits, which is all that can be cached; set it to none')
    widths += served
  return widths


def taps_signal(built: Networks) -> TeacherSignal:
  """Returns the shapes of what a cache of the taps keeps: the features that carry a head."""
  return jax.eval_shape(lambda: TeacherSignal(features=OrderedDict(
      (tap, jnp.zeros((1, *shape))) for tap, shape in built.taps.items())))


def taps_kind(built: Networks) -> str:
  """Returns what a cache of the taps is called."""
  return f'features at {", ".join(built.taps)}'


def summaries(built: Networks, names: Sequence[str], teacher: nn.Module) -> Callable:
  """Returns (frozen, images) to what a cache keeps of the teacher signal for each of the methods.

  `teacher` makes one forward pass for all of them, and its heads if one of them needs these.
  """
  taught_by = {built.methods[name].taught_by for name in names}
  teach = make_teach('cohort' if 'cohort' in taught_by else 'teacher', teacher, (),
                     built.heads, tuple(built.taps))

  def of_each(frozen, images):
    signal = teach(frozen, images)
    return tuple(summary(built, name).extract(signal, frozen.get('weights', {})) for name in names)

  return of_each


def summary(built: Networks, name: str) -> Summary:
  """Returns what a cache that `serves` the method `name` keeps for it."""
  found = built.methods[name].summary
  assert found, 'the method is served'
  return found


def cached_with(experiment: Experiment, name: str) -> tuple[str, ...]:
  """Returns the method `name`, and others whose cache can be made with its own.

  They have the same teachers, and are still to be trained.
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
) -> Signals:
  """Returns the cached signals of the first of the methods.

  They are kept in this process for other students; so are those of the other methods, as far as
  there is room.

  Args:
    experiment: the run.
    names: from `cached_with`.
    teacher: the module of the teacher.
    frozen: {'teacher', 'heads', 'weights'}, as far as the methods are taught by them.

  Raises:
    ConfigError: there is no room for it, or one on the disk does not serve.
  """
  built = experiment.networks
  fingerprints = {part: digests.of(variables) for part, variables in frozen.items()}
  wanted: dict[str, tuple[str, build.Table]] = {}  # Methods of the same signal share a table.
  for name in names:
    parts = fingerprints if built.methods[name].taught_by == 'cohort' else {
        'teacher': fingerprints['teacher']}
    found = _wanted(experiment, OUTPUTS, summary(built, name).name, built.cached_signals[name],
                    parts)
    wanted.setdefault(digests.of_json(found.identity), (name, found))
  chosen = [name for name, _ in wanted.values()]
  return cache.table(_request(experiment, summaries(built, chosen, teacher), frozen,
                              tuple(found for _, found in wanted.values())))


def taps_table(experiment: Experiment, teach: Teach, frozen: dict[str, Any]) -> Signals:
  """Returns the cached features at the taps, for the heads alone. Raises ConfigError as `table`.

  Args:
    experiment: the run.
    teach: (frozen, images) to the features.
    frozen: {'backbone': variables}.
  """
  built = experiment.networks
  wanted = _wanted(experiment, TAPS, taps_kind(built), taps_signal(built),
                   {'teacher': digests.of(frozen['backbone'])})
  made, = build.make(_request(
      experiment, lambda frozen, images: (teach(frozen, images),), frozen, (wanted,)), cache.forget)
  return made


def _wanted(
    experiment: Experiment, cache_kind: str, kind: str, like: TeacherSignal,
    fingerprints: dict[str, str],
) -> build.Table:
  """Returns a table of `cache_kind`, one of `schema.CACHES`, with the `kind` of its signals."""
  preprocess, subset = experiment.data.student_preprocess, experiment.data.train_subset
  fields = protocol.cached(resolved(experiment.config), cache_kind)
  shape = [len(subset), preprocess.num_slots, rows.width(like)]
  return build.Table(len(subset), preprocess.num_slots, like, {
      **{part: fingerprints.get(part, '') for part in ('teacher', 'heads', 'weights')},
      **{f'config.{name}': value for name, value in fields.items()},
      **(experiment.identity.of_cache() if experiment.identity else {}),
      'choice of images': digests.of(subset),
      'augmentation': digests.of_json(dataclasses.asdict(preprocess)),
      'kind of rows': kind, 'shape': shape, 'type': build.DTYPE.name})


def _request(
    experiment: Experiment, teach: Callable, frozen: dict[str, Any],
    tables: tuple[build.Table, ...],
) -> build.BuildRequest:
  config = experiment.config
  return build.BuildRequest(
      teach=teach, frozen=frozen, tables=tables, place=config.compute.cache_place,
      folder=experiment.teachers.path, loader=lambda: experiment.data.splits.loader('train'),
      subset=experiment.data.train_subset, preprocess=experiment.data.student_preprocess,
      block=config.data.eval_global_batch_size)
