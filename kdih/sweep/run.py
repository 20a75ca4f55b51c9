"""Runs a sweep: every teacher and every student once, by one process or by several."""
import contextlib
import logging
import time
import traceback

import jax
import ml_collections
from etils import epath

from kdih import errors
from kdih.data import duplicates, sizes, source
from kdih.data.splits import Splits
from kdih.phases import dry_run, memory, pipeline
from kdih.phases.experiment import Experiment
from kdih.phases.student import train_together
from kdih.runtime import environment, run_files
from kdih.runtime.files import InUseError
from kdih.sweep import plan
from kdih.sweep.jobs import Job, Jobs, Sweep
from kdih.sweep.resume import Checks

logger = logging.getLogger(__name__)

_PAUSE = 2.0  # Seconds to wait before other processes are checked again.


def run(config: ml_collections.ConfigDict, path: epath.PathLike) -> dict[str, str]:
  """Does the jobs that no other process does or has done, and returns {job: why it failed}.

  Args:
    config: from a config file; `config.sweep` lists the runs.
    path: the workdir. There `<teacher>/` is the workdir of a teacher and its heads, and
      `<teacher>/<student>/seed<seed>/` that of the students with this seed, by all methods.

  Raises:
    ConfigError: a setting is wrong; nothing has been written.
    DataError: the images cannot be used; nothing has been written.
  """
  sweep = Sweep(config, path)
  earlier = failures(sweep)
  checks = Checks(sweep)
  for reason in sweep.left_out.values():
    logger.warning(f'sweep: left out: {reason}')
  splits = source.open_splits(sweep.builder, config.data)
  checks.check_cache(splits.size('train'))
  checks.check_memory(splits)  # Before images are read: those of an absurd size take minutes.
  checks.identify(splits)
  if sweep.jobs_left():
    splits.check(config.data.validation_fraction)
    duplicates.warn_if_shared(sweep.builder, config.data)
  else:
    logger.info(f'sweep: all {sum(map(len, sweep.jobs()))} jobs were finished before')
  checks.record(splits)
  environment.prepare(config.compute.compilation_cache, config.compute.keep_freed_memory)
  worker = Worker(sweep, checks, splits, earlier)
  worker.work()
  return worker.failures


class Worker:
  """Does the jobs of a sweep, together with the workers of other processes.

  Args:
    sweep: its jobs.
    checks: of the sweep; `identify` has been called.
    splits: of the data set.
    earlier: the `failures` when the process began: these jobs are tried again.

  Attributes:
    failures: why a job failed, by its name.
  """

  def __init__(self, sweep: Sweep, checks: Checks, splits: Splits,
               earlier: dict[str, run_files.Fields]):
    self._sweep, self._checks, self._splits, self._earlier = sweep, checks, splits, earlier
    names = [job.name for jobs in sweep.jobs() for job in jobs]
    self._positions = {name: f'{number} of {len(names)}' for number, name in enumerate(names, 1)}
    self.failures: dict[str, str] = {}

  def work(self) -> None:
    """Returns once all jobs have ended, in this process or in another."""
    pending, is_waiting = self._sweep.jobs(), False
    while pending:
      left = self._do_free(pending)
      if len(left) == len(pending):
        if not is_waiting:
          logger.info('sweep: waits for jobs of other processes')
        time.sleep(_PAUSE)
      pending, is_waiting = left, len(left) == len(pending)

  def _do_free(self, pending: list[Jobs]) -> list[Jobs]:
    """Does the jobs that can begin and that no other process does; returns the others."""
    left: list[Jobs] = []
    for number, jobs in enumerate(pending):
      waiting = {other.name for others in (*left, *pending[number:]) for other in others}
      if waiting.intersection(jobs[0].after) or not self.settle(jobs):
        left.append(jobs)
    return left

  def settle(self, jobs: Jobs) -> bool:
    """Does jobs together, unless another process does one of them; returns whether they ended."""
    for needed in jobs[0].needs:
      if needed in self.failures:
        self.failures.update({job.name: f'{needed} failed' for job in jobs})
        return True
    try:
      with contextlib.ExitStack() as stack:
        for job in jobs:
          stack.enter_context(job.workdir.locked_phase(job.phase))
        left = [job for job in jobs if not (job.is_done or self._failed_meanwhile(job))]
        self._try_together(left)
        for job in left:
          self._try(job)
        return True
    except InUseError:
      return False
    finally:
      jax.clear_caches()

  def _try_together(self, jobs: list[Job]) -> None:
    """Trains students as one program; `_try` of each then resumes from its checkpoints."""
    if len(jobs) < 2:
      return
    logger.info(f'sweep: {jobs[0].name} and {len(jobs) - 1} more, together')
    try:
      experiments = [self._open(job) for job in jobs]
      train_together([(experiment, job.phase.removeprefix('student/'))
                      for experiment, job in zip(experiments, jobs, strict=True)])
    except Exception as error:  # The job that fails raises its error again in `_try`.
      logger.warning('sweep: they failed together, and each continues alone: '
                     f'{errors.first_line(error)}')

  def _open(self, job: Job) -> Experiment:
    """Returns the run of a job, opened.

    Raises:
      ConfigError: another command has begun the run with another config or identity, or has copied
        other variables than the config names.
    """
    experiment = self._checks.experiment(job, self._splits)
    pipeline.check_copied(job.config, experiment.teachers)
    experiment.open()
    return experiment

  def _try(self, job: Job) -> None:
    """Does the job; an error is written to `failure.json`, and the sweep continues."""
    logger.info(f'sweep: {job.name} ({self._positions[job.name]})')
    failure = _failure_file(job)
    try:
      experiment = self._open(job)
      failure.unlink(missing_ok=True)
      with memory.reported_in_one_line(job.phase):
        pipeline.runner(job.phase)(experiment)
    except Exception as error:  # Any error of one job must not end the others.
      reason = errors.first_line(error)
      self.failures[job.name] = reason
      failure.parent.mkdir(parents=True, exist_ok=True)
      run_files.write(failure, {'error': errors.printable(reason), 'time': time.time(),
                                'traceback': _unicode(traceback.format_exc())})
      logger.warning(f'sweep: {job.name} failed: {reason}')

  def _failed_meanwhile(self, job: Job) -> bool:
    """Returns whether the job has failed in another process since this one began."""
    failure = run_files.read(_failure_file(job), run_files.Failure)
    # Two failures differ at least in their time. The clock of another machine may be ahead.
    if failure is None or failure == self._earlier.get(job.name):
      return False
    self.failures[job.name] = failure['error']
    return True


def failures(sweep: Sweep) -> dict[str, run_files.Fields]:
  """Returns what `failure.json` holds, by the name of each job that has failed.

  Raises:
    FileError: such a file is damaged.
    UnreadableError: such a file cannot be read.
  """
  found = {job.name: run_files.read(_failure_file(job), run_files.Failure)
           for jobs in sweep.jobs() for job in jobs}
  return {name: failure for name, failure in found.items() if failure is not None}


def _failure_file(job: Job) -> epath.Path:
  return job.workdir.path / job.phase / 'failure.json'


def _unicode(text: str) -> str:
  """Returns the text without lone surrogates, such as bytes of a path that are not UTF-8."""
  return text.encode(errors='replace').decode()


def estimate(config: ml_collections.ConfigDict, path: epath.PathLike) -> str:
  """Returns what the sweep will take, as text, see `dry_run`; trains and writes nothing."""
  sweep = Sweep(config, path)
  checks = Checks(sweep)
  images = sizes.known(sweep.builder, config.data)
  checks.check_cache(images.get('train', 0) + images.get('validation', 0))
  # Runs that differ only in their seed are estimated once.
  found: dict[tuple[str, str, tuple[str, ...]], tuple[int, plan.Pair]] = {}
  for jobs in sweep.jobs_left():
    pair, phases = jobs[0].pair, tuple(job.phase for job in jobs)
    runs, _ = found.get((*pair.key, phases), (0, pair))
    found[(*pair.key, phases)] = runs + 1, pair
  planned = [
      dry_run.PlannedPhase(
          config=pair.config, built=sweep.networks(pair), phases=phases, runs=runs,
          pair=f'{teacher} -> {student}' if phases[0].startswith('student/') else teacher)
      for (teacher, student, phases), (runs, pair) in found.items()]
  text = dry_run.describe(planned, images, config.dry_run_seconds)
  return '\n'.join([*(f'left out: {reason}' for reason in sweep.left_out.values()), text])
