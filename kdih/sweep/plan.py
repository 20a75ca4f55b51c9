"""Which runs a sweep consists of, and where each of them lies."""
import dataclasses

import ml_collections
from etils import epath

from kdih import errors
from kdih.models import registry
from kdih.runtime.files import folder_name
from kdih.runtime.workdir import Workdir
from kdih.sweep import variants


@dataclasses.dataclass(frozen=True)
class Pair:
  """One teacher, with its heads, and one student.

  Attributes:
    teacher: name of its model.
    student: name of its model.
    config: of all their runs, but for the seed.
    methods: names, in the order in which they are run.
  """

  teacher: str
  student: str
  config: ml_collections.ConfigDict
  methods: tuple[str, ...]

  def without(self, method: str) -> 'Pair':
    """The pair without one of its methods."""
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
    """What messages call it."""
    return f'{self.pair.teacher}/{self.pair.student}/{self.method}/seed{self.seed}'

  @property
  def config(self) -> ml_collections.ConfigDict:
    """That of the pair, with the seed."""
    return changed(self.pair.config, seed=self.seed)

  def folder(self, workdir: epath.Path) -> epath.Path:
    """The workdir of the run, which it shares with the other methods."""
    return pair_folder(workdir, self.pair.teacher) / folder_name(self.pair.student) / (
        f'seed{self.seed}')


@dataclasses.dataclass(frozen=True)
class Job:
  """A phase to be done once.

  Attributes:
    name: what messages and locks call it.
    pair: whose phase it is, or the first that it serves.
    config: its own.
    workdir: where it lies.
    phase: its name there.
    after: names of the jobs that must be over before.
    needs: those of them that must have succeeded.
  """

  name: str
  pair: Pair
  config: ml_collections.ConfigDict
  workdir: Workdir
  phase: str
  after: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()


def pair_folder(workdir: epath.Path, teacher: str) -> epath.Path:
  """The workdir of a teacher and its heads."""
  return workdir / folder_name(teacher)


def changed(config: ml_collections.ConfigDict, **fields) -> ml_collections.ConfigDict:
  """A copy of `config` with other values for some of its fields."""
  copy = config.copy_and_resolve_references()
  copy.update(fields)
  return copy


def pairs(config: ml_collections.ConfigDict) -> list[Pair]:
  """The pairs that `config.sweep` names, each with its own config; methods in all variants.

  Raises:
    ConfigError: a pair that is not 'teacher:student'.
  """
  sweep = config.sweep
  if sweep.pairs and sweep.students:
    raise errors.ConfigError(
        'config.sweep.students: is set, and config.sweep.pairs too, which may stand in the config '
        'file; set one, and empty the other with --config.sweep.pairs=')
  students = tuple(sweep.students or (config.student.name,))
  methods = tuple(sweep.methods or config.student.methods)
  config, methods = variants.expand(config, methods)
  names = [_split(pair) for pair in sweep.pairs] or [
      (config.teacher.name, student) for student in students]
  return [Pair(teacher, student, _pair_config(config, teacher, student, methods), methods)
          for teacher, student in names]


def runs(config: ml_collections.ConfigDict, chosen: list[Pair]) -> list[tuple[Run, ...]]:
  """Every combination, by what is trained together.

  Seed by seed, so that an early table holds every method; or all seeds of all variants of a method
  with each other. With a cache teacher by teacher, for that of one is kept at a time.

  Raises:
    ConfigError: seeds are to be trained together that would not see the same batches.
  """
  seeds = tuple(config.sweep.seeds)
  if config.sweep.together and config.data.order_seed < 0 and len(seeds) > 1:
    raise errors.ConfigError(
        'config.sweep.together: is set, and seeds that are trained together see the same batches; '
        'set config.data.order_seed to a number from 0, such as 0')
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
  parts = pair.split(':')  # An import path holds a colon too.
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
    if copy[role].name != name:  # Arguments of one model are not those of another.
      copy[role].name, copy[role].kwargs = name, ml_collections.ConfigDict()
  copy.student.methods = methods
  return copy
