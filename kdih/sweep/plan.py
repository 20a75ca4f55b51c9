"""The runs of a sweep, their order, and their folders."""
import dataclasses

import ml_collections
from etils import epath

from kdih import errors
from kdih.models import registry
from kdih.runtime.files import folder_name
from kdih.sweep import variants


@dataclasses.dataclass(frozen=True)
class Pair:
  """One teacher, with its heads, and one student.

  Attributes:
    teacher: name of its model.
    student: name of its model.
    config: of all their runs, except for the seed.
    methods: names, in the order in which they are run.
  """

  teacher: str
  student: str
  config: ml_collections.ConfigDict
  methods: tuple[str, ...]

  @property
  def key(self) -> tuple[str, str]:
    """Returns the names of teacher and student."""
    return self.teacher, self.student

  def without(self, method: str) -> 'Pair':
    """Returns the pair without one of its methods."""
    methods = tuple(name for name in self.methods if name != method)
    copy = changed(self.config)
    copy.student.methods = methods
    return dataclasses.replace(self, config=copy, methods=methods)


@dataclasses.dataclass(frozen=True)
class Run:
  """One student to train."""

  pair: Pair
  method: str
  seed: int

  @property
  def name(self) -> str:
    """Returns the name for messages."""
    return f'{self.pair.teacher}/{self.pair.student}/{self.method}/seed{self.seed}'

  @property
  def config(self) -> ml_collections.ConfigDict:
    """Returns the config of the pair, with the seed."""
    return changed(self.pair.config, seed=self.seed)

  def folder(self, workdir: epath.Path) -> epath.Path:
    """Returns the workdir of the run, which the other methods share."""
    return pair_folder(workdir, self.pair.teacher) / folder_name(self.pair.student) / (
        f'seed{self.seed}')


def pair_folder(workdir: epath.Path, teacher: str) -> epath.Path:
  """Returns the workdir of a teacher and its heads."""
  return workdir / folder_name(teacher)


def changed(config: ml_collections.ConfigDict, **fields) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with other values for some of its fields."""
  copy = config.copy_and_resolve_references()
  copy.update(fields)
  return copy


def pairs(config: ml_collections.ConfigDict) -> list[Pair]:
  """Returns the pairs that `config.sweep` names, each with its config and all method variants.

  Raises:
    ConfigError: a pair is not 'teacher:student', or both pairs and students are set.
  """
  sweep = config.sweep
  if sweep.pairs and sweep.students:
    raise errors.ConfigError(
        'config.sweep.students: cannot be set together with config.sweep.pairs, which the config '
        'file may set; clear one of them, with --config.sweep.pairs=')
  students = tuple(sweep.students or (config.student.name,))
  methods = tuple(sweep.methods or config.student.methods)
  config, methods = variants.expand(config, methods)
  names = [_split(pair) for pair in sweep.pairs] or [
      (config.teacher.name, student) for student in students]
  return [Pair(teacher, student, _pair_config(config, teacher, student, methods), methods)
          for teacher, student in names]


def runs(config: ml_collections.ConfigDict, chosen: list[Pair]) -> list[tuple[Run, ...]]:
  """Returns all runs in groups that are trained together.

  The groups are in the order of the seeds, to have an early table with every method; with
  `config.sweep.together` a group has all seeds and variants of a method. With a teacher cache the
  runs of one teacher follow each other, because only the cache of one teacher is kept.

  Raises:
    ConfigError: `config.sweep.together` is set, but the seeds would not see the same batches.
  """
  seeds = tuple(config.sweep.seeds)
  if config.sweep.together and config.data.order_seed < 0 and len(seeds) > 1:
    raise errors.ConfigError(
        'config.sweep.together: seeds that are trained together must see the same batches; set '
        'config.data.order_seed to a number from 0, such as 0')
  if config.compute.cache == 'none':
    return _in_order(config, chosen)
  teachers = dict.fromkeys(pair.teacher for pair in chosen)
  return [runs for teacher in teachers
          for runs in _in_order(config, [pair for pair in chosen if pair.teacher == teacher])]


def _in_order(config: ml_collections.ConfigDict, chosen: list[Pair]) -> list[tuple[Run, ...]]:
  seeds = tuple(config.sweep.seeds)
  if not config.sweep.together:
    return [(Run(pair, method, seed),) for seed in seeds for pair in chosen
            for method in pair.methods]
  return [tuple(Run(pair, method, seed) for method in methods for seed in seeds)
          for pair in chosen for methods in variants.alike(pair.config, pair.methods)]


def _split(pair: str) -> tuple[str, str]:
  parts = pair.split(':')  # An import path contains a colon, too.
  cut = 1 if len(parts) == 2 or parts[0] in registry.names() else 2
  teacher, student = ':'.join(parts[:cut]), ':'.join(parts[cut:])
  if not (teacher and student):
    raise errors.ConfigError(f"config.sweep.pairs: {pair!r} is not 'teacher:student', such as "
                             "'resnet110:resnet20'")
  return teacher, student


def _pair_config(
    config: ml_collections.ConfigDict, teacher: str, student: str, methods: tuple[str, ...]
) -> ml_collections.ConfigDict:
  copy = changed(config, phases=('student',))
  for role, name in (('teacher', teacher), ('student', student)):
    if copy[role].name != name:  # The arguments in the config are for the model in the config.
      copy[role].name, copy[role].kwargs = name, ml_collections.ConfigDict()
  copy.student.methods = methods
  return copy
