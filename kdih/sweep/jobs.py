"""The jobs of a sweep: the phases that its runs consist of, in an order that can be executed."""
import dataclasses
import itertools

import ml_collections
from etils import epath

from kdih import errors
from kdih.config import checks
from kdih.data import datasets
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.phases.networks import Networks
from kdih.runtime import places
from kdih.runtime.workdir import Workdir, check_shared
from kdih.sweep import plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A phase that has to be done once.

  Attributes:
    name: for messages.
    pair: the pair that needs the phase, or the first of several.
    config: of the phase's run.
    workdir: of the phase's run.
    phase: its name in the workdir.
    after: names of the jobs that must have ended before.
    needs: names of the jobs that must have succeeded before.
  """

  name: str
  pair: plan.Pair
  config: ml_collections.ConfigDict
  workdir: Workdir
  phase: str
  after: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()

  @property
  def is_done(self) -> bool:
    """Returns whether the phase has a result."""
    return bool(self.workdir.result(self.phase))


Jobs = tuple[Job, ...]  # They are done together.


class Sweep:
  """The pairs of a sweep, with their networks, and its jobs.

  Args:
    config: unchecked.
    path: of the workdir.

  Attributes:
    config: checked.
    path: of the workdir.
    builder: of the data set.
    pairs: with the methods that can be used.
    left_out: why a method was left out, by 'TEACHER/STUDENT/METHOD'.
    runs: in groups that are trained together.

  Raises:
    ConfigError: a setting is wrong; nothing has been written.
  """

  def __init__(self, config: ml_collections.ConfigDict, path: epath.PathLike):
    checks.check(config)
    check_shared(path)
    places.check_workdir(path)
    self.config, self.path = config, epath.Path(path)
    self.builder = datasets.open_builder(config.data, stage=not config.dry_run)
    self.pairs: list[plan.Pair] = []
    self.left_out: dict[str, str] = {}
    self._networks: dict[tuple[str, str], Networks] = {}
    spec = datasets.describe(self.builder, config.data)
    for pair in plan.pairs(config):
      self._add(pair, spec)
    if not self.pairs:
      raise errors.ConfigError(next(iter(self.left_out.values())))
    self.runs = plan.runs(config, self.pairs)

  def _add(self, pair: plan.Pair, spec: DataSpec) -> None:
    """Adds the pair with the methods that can be used with it, and notes the others."""
    while pair.methods:
      try:
        self._networks[pair.key] = networks.build(pair.config, spec)
        self.pairs.append(pair)
        return
      except errors.UnfitError as error:
        self.left_out[f'{pair.teacher}/{pair.student}/{error.method}'] = str(error)
        pair = pair.without(error.method)

  def networks(self, pair: plan.Pair) -> Networks:
    """Returns the networks of a pair."""
    return self._networks[pair.key]

  def teachers(self, pair: plan.Pair) -> Workdir:
    """Returns the workdir of a pair's teacher and heads."""
    return Workdir(plan.pair_folder(self.path, pair.teacher))

  def teacher_workdirs(self) -> list[tuple[Workdir, plan.Pair]]:
    """Returns each workdir of a teacher and its heads, with one of the pairs that use it."""
    found = {self.teachers(pair).path: pair for pair in self.pairs}
    return [(Workdir(path), pair) for path, pair in found.items()]

  def student_workdirs(self) -> list[tuple[Workdir, plan.Run]]:
    """Returns each workdir of students, with one of its runs, which share their config."""
    found = {run.folder(self.path): run for run in itertools.chain.from_iterable(self.runs)}
    return [(Workdir(path), run) for path, run in found.items()]

  def jobs(self) -> list[Jobs]:
    """Returns all jobs: first the teachers and heads that the methods require."""
    teaching = {job.name: job for pair in self.pairs for job in self.teaching(pair)}
    names = tuple(teaching)
    return [*((job,) for job in teaching.values()),
            *(tuple(self._job(run, names) for run in runs) for runs in self.runs)]

  def jobs_left(self) -> list[Jobs]:
    """Returns the jobs that are not done yet."""
    left = (tuple(job for job in jobs if not job.is_done) for jobs in self.jobs())
    return [jobs for jobs in left if jobs]

  def teaching(self, pair: plan.Pair) -> list[Job]:
    """Returns the jobs of a pair's teacher and heads, if its methods require them."""
    taught_by = {method.taught_by for method in self.networks(pair).methods.values()}
    name, heads = _teaching_names(pair)
    teacher = Job(name=name, pair=pair, config=pair.config, workdir=self.teachers(pair),
                  phase='teacher')
    jobs = [teacher]
    if 'cohort' in taught_by:
      jobs.append(dataclasses.replace(
          teacher, name=heads, phase='heads', after=(name,), needs=(name,)))
    return [] if taught_by == {'labels'} else jobs

  def _job(self, run: plan.Run, teaching: tuple[str, ...]) -> Job:
    taught_by = self.networks(run.pair).methods[run.method].taught_by
    teacher, heads = _teaching_names(run.pair)
    used = (teacher, heads) if taught_by == 'cohort' else (teacher,)
    after = tuple(name for name in used if name in teaching)
    # A student of the labels alone waits for a teacher, if there is one, to measure the agreement.
    return Job(name=run.name, pair=run.pair, config=run.config,
               workdir=Workdir(run.folder(self.path)), phase=f'student/{run.method}', after=after,
               needs=() if taught_by == 'labels' else after)


def _teaching_names(pair: plan.Pair) -> tuple[str, str]:
  return f'{pair.teacher}/teacher', f'{pair.teacher}/heads'
