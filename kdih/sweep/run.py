"""A sweep at work: each teacher and each run once, whatever the number of processes."""
import contextlib
import dataclasses
import functools
import itertools
import logging
import time
import traceback

import filelock
import jax
import ml_collections
from etils import epath

from kdih import errors
from kdih.config import checks, protocol
from kdih.data import datasets, duplicates, identity as data_identity, sizes, source
from kdih.data.spec import DataSpec
from kdih.data.splits import Splits
from kdih.phases import cache_plan, dry_run, identity, memory, networks, pipeline, resume
from kdih.phases.experiment import Experiment
from kdih.phases.identity import Identity
from kdih.phases.networks import Networks
from kdih.phases.student import train_together
from kdih.runtime import environment
from kdih.runtime.files import damaged, folder_name, read_json, write_json
from kdih.runtime.workdir import Workdir, check_shared, resolved
from kdih.sweep import plan
from kdih.sweep.plan import Job

logger = logging.getLogger(__name__)

_PAUSE = 2.0  # Seconds between two looks at what other processes are doing.

_Jobs = tuple[Job, ...]  # That are done together.


class _Sweep:
  """What the runs share, and who does what.

  Args:
    config: unchecked.
    path: of the workdir.

  Raises:
    ConfigError: a setting is wrong; nothing has been written.
  """

  def __init__(self, config: ml_collections.ConfigDict, path: epath.PathLike):
    checks.check(config)
    check_shared(path)
    self.config, self.path = config, epath.Path(path)
    self.builder = datasets.open_builder(config.data, stage=not config.dry_run)
    spec = datasets.describe(self.builder, config.data)
    self.left_out: dict[str, str] = {}
    self.pairs: list[plan.Pair] = []
    self._built: dict[tuple[str, str], Networks] = {}
    self._identities: dict[tuple[str, str], Identity] = {}
    self._accepted: dict[epath.Path, list[str]] = {}  # Differences, by workdir.
    self._compared = 0  # Commands of `sweep.json`, which only grows.
    self._known: dict[str, None] = {}  # Differences of the config that those have accepted.
    self.differences: dict[str, None] = {}  # Of it, to commands and runs here; all are accepted.
    for pair in plan.pairs(config):
      self._add(pair, spec)
    if not self.pairs:
      raise errors.ConfigError(next(iter(self.left_out.values())))
    self.runs = plan.runs(config, self.pairs)
    self._check()
    self.begun = time.time()
    self.failures: dict[str, str] = {}

  def _add(self, pair: plan.Pair, spec: DataSpec) -> None:
    """Takes up the pair with the methods that fit it, and notes the others."""
    while pair.methods:
      try:
        self._built[pair.teacher, pair.student] = networks.build(pair.config, spec)
        self.pairs.append(pair)
        return
      except errors.UnfitError as error:
        self.left_out[f'{pair.teacher}/{pair.student}/{error.method}'] = str(error)
        pair = pair.without(error.method)

  def networks(self, pair: plan.Pair) -> Networks:
    """Returns those of a pair."""
    return self._built[pair.teacher, pair.student]

  def teachers(self, pair: plan.Pair) -> Workdir:
    """Returns the workdir of a pair's teacher and heads."""
    return Workdir(plan.pair_folder(self.path, pair.teacher))

  def _check(self) -> None:
    """Raises ConfigError where the workdir holds runs of another config, or what exists does not
    serve; writes nothing."""
    pipeline.check_devices(self.config)
    resume.check_config(Workdir(self.path), resolved(self.config))
    self.check_commands(_commands(self.path))
    for teachers, pair in self._teacher_workdirs():
      self._accepted[teachers.path] = resume.check_config(
          teachers, resolved(pair.config), student=False)
    for pair in self.pairs:
      pipeline.check_existing(pair.config, self.networks(pair), self.teachers(pair))
    for workdir, run in self._student_workdirs():
      self._accepted[workdir.path] = resume.check_config(workdir, resolved(run.config))
    for folder in sorted(self.path.glob('*/*/seed*')):  # Their numbers share a table with ours.
      self.differences |= dict.fromkeys(resume.check_swept(
          Workdir(folder), resolved(self.pairs[0].config), self._known))

  def _teacher_workdirs(self) -> list[tuple[Workdir, plan.Pair]]:
    """Returns each workdir of a teacher and its heads, with one of the pairs that it serves."""
    found = {self.teachers(pair).path: pair for pair in self.pairs}
    return [(Workdir(path), pair) for path, pair in found.items()]

  def _student_workdirs(self) -> list[tuple[Workdir, plan.Run]]:
    """Returns each workdir of students, with one of its runs, which share their config."""
    found = {run.folder(self.path): run for run in itertools.chain.from_iterable(self.runs)}
    return [(Workdir(path), run) for path, run in found.items()]

  def check_commands(self, commands: list[dict]) -> None:
    """Raises ConfigError where an earlier command asked for other runs than this one shares.

    Its runs may not have begun, so that their folders do not tell.
    """
    now, new = resolved(self.config), commands[self._compared:]
    self._compared = len(commands)
    self._known |= dict.fromkeys(line for command in new for line in command.get('accepted', ()))

    def compared(config: dict, before: dict) -> dict:
      common = sorted(_methods(before) & _methods(now))
      return {**protocol.swept(config), **protocol.methods(config, common)}

    for command in new:
      before = command['config']
      self.differences |= dict.fromkeys(resume.compare_configs(
          self.path / 'sweep.json', before, now, functools.partial(compared, before=before),
          self._known))

  def identify(self, splits: Splits) -> None:
    """Finds out what the runs are made of. Raises ConfigError where it is not what they were."""
    content = data_identity.identify(self.builder, self.config.data, splits)
    for pair in self.pairs:
      self._identities[pair.teacher, pair.student] = identity.collect(
          self.networks(pair), self.teachers(pair), content)
    for teachers, pair in self._teacher_workdirs():
      now = self._identities[pair.teacher, pair.student].of_teachers()
      self._accepted[teachers.path] += resume.check(teachers, now, resolved(pair.config))
    for workdir, run in self._student_workdirs():
      now = self._identities[run.pair.teacher, run.pair.student]
      self._accepted[workdir.path] += resume.check(workdir, now, resolved(run.config))

  def check_cache(self, num_examples: int) -> None:
    """Raises ConfigError where a cache is asked for that cannot be, for so many images."""
    for pair in self.pairs:
      left = [job.phase for job in self._teaching(pair) if not job.workdir.result(job.phase)]
      config = plan.changed(pair.config, phases=(*left, 'student'))
      cache_plan.check(config, self.networks(pair), self.teachers(pair).path, num_examples)

  def check_memory(self, splits: Splits) -> None:
    """Raises ConfigError where what is left to do cannot possibly fit into a device."""
    left: dict[tuple[str, str], dict[str, plan.Pair]] = {}
    for jobs in self.jobs_left():
      for job in jobs:
        left.setdefault((job.pair.teacher, job.pair.student), {})[job.phase] = job.pair
    for phases in left.values():
      pair = next(iter(phases.values()))
      memory.check(pair.config, self.networks(pair), splits, phases)

  def jobs_left(self) -> list[_Jobs]:
    """Returns what has not been done yet."""
    left = (tuple(job for job in jobs if not job.workdir.result(job.phase))
            for jobs in self.jobs())
    return [jobs for jobs in left if jobs]

  def jobs(self) -> list[_Jobs]:
    """Returns all there is to do: first teachers and heads, as far as methods ask for them."""
    teaching = {job.name: job for pair in self.pairs for job in self._teaching(pair)}
    names = tuple(teaching)
    return [*((job,) for job in teaching.values()),
            *(tuple(self._job(run, names) for run in runs) for runs in self.runs)]

  def _teaching(self, pair: plan.Pair) -> list[Job]:
    taught_by = {method.taught_by for method in self.networks(pair).methods.values()}
    workdir, teacher, heads = self.teachers(pair), *_teaching_names(pair)
    jobs = [Job(teacher, pair, pair.config, workdir, 'teacher')]
    if 'cohort' in taught_by:
      jobs.append(Job(heads, pair, pair.config, workdir, 'heads', (teacher,), (teacher,)))
    return [] if taught_by == {'labels'} else jobs

  def _job(self, run: plan.Run, teaching: tuple[str, ...]) -> Job:
    taught_by = self.networks(run.pair).methods[run.method].taught_by
    teacher, heads = _teaching_names(run.pair)
    wanted = (teacher, heads) if taught_by == 'cohort' else (teacher,)
    after = tuple(name for name in wanted if name in teaching)
    # Labels teach without a teacher, but agreement with the one that there is gets measured.
    return Job(run.name, run.pair, run.config, Workdir(run.folder(self.path)),
                f'student/{run.method}', after, () if taught_by == 'labels' else after)

  def experiment(self, job: Job, splits: Splits) -> Experiment:
    """Returns the run that a job belongs to."""
    teachers = self.teachers(job.pair)
    now = self._identities[job.pair.teacher, job.pair.student]
    if job.workdir.path == teachers.path:
      now = now.of_teachers()
    accepted = dict.fromkeys(
        (*self._accepted[teachers.path], *self._accepted[job.workdir.path]))
    return Experiment(job.config, self.networks(job.pair), job.workdir, splits, teachers,
                      dataclasses.replace(now, accepted=tuple(accepted)))

  def record_accepted(self, splits: Splits) -> None:
    """Writes down what was accepted, so that later commands need not accept it again."""
    for job in itertools.chain.from_iterable(self.jobs()):
      if self._accepted[job.workdir.path] and job.workdir.manifest():
        self.experiment(job, splits).open()

  def lock(self, name: str) -> filelock.BaseFileLock:
    """Returns the lock of a job, over all processes that share the workdir."""
    folder = self.path / 'locks'
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f'{folder_name(name)}.lock')


def _commands(path: epath.Path) -> list[dict]:
  """Returns what `sweep.json` holds of earlier commands. Raises ConfigError where it is damaged."""
  file = path / 'sweep.json'
  commands = read_json(file) or []
  if not (isinstance(commands, list) and all(
      isinstance(command, dict) and isinstance(command.get('config'), dict)
      and _are_lines(command.get('accepted', [])) for command in commands)):
    raise damaged(file, 'it is no list of commands, each with its config and what it accepted')
  return commands


def _are_lines(value: object) -> bool:
  return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _methods(config: dict) -> set[str]:
  """Returns the entries of `config.methods` that a sweep of a config names."""
  return set(config['sweep']['methods'] or config['student']['methods'])


def _teaching_names(pair: plan.Pair) -> tuple[str, str]:
  return f'{pair.teacher}/teacher', f'{pair.teacher}/heads'


def run(config: ml_collections.ConfigDict, path: epath.PathLike) -> dict[str, str]:
  """Does what no other process does or has done, and returns {run: why it failed}.

  Args:
    config: from a config file; `config.sweep` says what to run.
    path: the workdir. There `<teacher>/` is the workdir of a teacher and its heads, and
      `<teacher>/<student>/seed<seed>/` that of the students with this seed, by all methods.

  Raises:
    ConfigError: a setting is wrong, or a method does not fit a pair; nothing has been written.
  """
  sweep = _Sweep(config, path)
  for reason in sweep.left_out.values():
    logger.warning(f'sweep: left out: {reason}')
  splits = source.open_splits(sweep.builder, config.data)
  sweep.identify(splits)
  sweep.check_cache(splits.size('train'))
  sweep.check_memory(splits)
  _write_sweep(sweep)
  sweep.record_accepted(splits)
  environment.prepare(config.compute.compilation_cache, config.compute.keep_freed_memory)
  pending, waits = sweep.jobs(), False
  if not all(job.workdir.result(job.phase) for jobs in pending for job in jobs):
    duplicates.warn_if_shared(sweep.builder, config.data)
  while pending:
    left = _do_those_free(sweep, pending, splits)
    if len(left) == len(pending):
      if not waits:
        logger.info('sweep: other processes are at all that can be done now; waits for them')
      time.sleep(_PAUSE)
    pending, waits = left, len(left) == len(pending)
  return sweep.failures


def _do_those_free(sweep: _Sweep, pending: list[_Jobs], splits: Splits) -> list[_Jobs]:
  """Does the jobs that can begin and that no other process is at; returns those that are left."""
  left: list[_Jobs] = []
  for number, jobs in enumerate(pending):
    waiting = {other.name for others in (*left, *pending[number:]) for other in others}
    if waiting.intersection(jobs[0].after) or not _settle(sweep, jobs, splits):
      left.append(jobs)
  return left


def _write_sweep(sweep: _Sweep) -> None:
  """Adds to `sweep.json` what the sweep consists of, unless it is there."""
  try:
    sweep.path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.ConfigError(f'--workdir: {sweep.path} cannot be made ({error.strerror}); choose '
                             'another folder') from error
  with sweep.lock('sweep'):
    before = _commands(sweep.path)
    sweep.check_commands(before)  # One may have begun since this one was checked.
    asked = {'pairs': [[pair.teacher, pair.student, list(pair.methods)] for pair in sweep.pairs],
             'left_out': sweep.left_out, 'seeds': list(sweep.config.sweep.seeds),
             'config': resolved(sweep.config)}
    if sweep.differences:  # Later commands need not accept them again.
      asked['accepted'] = list(sweep.differences)
    if asked not in before:
      write_json(sweep.path / 'sweep.json', [*before, asked])


def _settle(sweep: _Sweep, jobs: _Jobs, splits: Splits) -> bool:
  """Does jobs together unless another process is at one of them; returns whether they are over."""
  for needed in jobs[0].needs:
    if needed in sweep.failures:
      sweep.failures.update({job.name: f'{needed} failed' for job in jobs})
      return True
  try:
    with contextlib.ExitStack() as stack:
      for job in jobs:
        stack.enter_context(sweep.lock(job.name).acquire(blocking=False))
      left = [job for job in jobs
              if not (job.workdir.result(job.phase) or _failed_meanwhile(sweep, job))]
      _try_together(sweep, left, splits)
      for job in left:
        _try(sweep, job, splits)
      return True
  except filelock.Timeout:
    return False
  finally:
    jax.clear_caches()


def _try_together(sweep: _Sweep, jobs: list[Job], splits: Splits) -> None:
  """Trains students as one program; each finds in its folder what came of it."""
  if len(jobs) < 2:
    return
  logger.info(f'sweep: {jobs[0].name} and {len(jobs) - 1} more, together')
  try:
    experiments = [_open(sweep, job, splits) for job in jobs]
    train_together([(experiment, job.phase.removeprefix('student/'))
                    for experiment, job in zip(experiments, jobs, strict=True)])
  except errors.PreemptedError:
    raise
  except Exception as error:  # Each meets its own when it goes on alone.
    logger.warning(f'sweep: together they failed, and go on alone: {errors.first_line(error)}')


def _open(sweep: _Sweep, job: Job, splits: Splits) -> Experiment:
  """Returns the run of a job, opened. Raises ConfigError where a command with another config, which
  came later, has begun it."""
  resume.check_config(job.workdir, resolved(job.config), student=job.phase.startswith('student/'))
  experiment = sweep.experiment(job, splits)
  experiment.open()
  return experiment


def _try(sweep: _Sweep, job: Job, splits: Splits) -> None:
  """Does the job; what it fails of is written down, and the sweep goes on."""
  logger.info(f'sweep: {job.name}')
  failure = job.workdir.path / job.phase / 'failure.json'
  try:
    experiment = _open(sweep, job, splits)
    failure.unlink(missing_ok=True)
    with memory.reported_in_one_line(job.phase):
      pipeline.runner(job.phase)(experiment)
  except errors.PreemptedError:
    raise
  except Exception as error:  # Whatever happens to one job must not end the others.
    reason = errors.first_line(error)
    sweep.failures[job.name] = reason
    failure.parent.mkdir(parents=True, exist_ok=True)
    write_json(failure, {'error': reason, 'time': time.time(),
                         'traceback': traceback.format_exc()})
    logger.warning(f'sweep: {job.name} failed: {reason}')


def _failed_meanwhile(sweep: _Sweep, job: Job) -> bool:
  """Returns whether another process has tried the job since this one began."""
  failure = read_json(job.workdir.path / job.phase / 'failure.json')
  if failure is None or failure['time'] < sweep.begun:
    return False
  sweep.failures[job.name] = failure['error']
  return True


def estimate(config: ml_collections.ConfigDict, path: epath.PathLike) -> str:
  """Returns what the sweep will take, as text, see `dry_run`; nothing is trained or written."""
  sweep = _Sweep(config, path)
  images = sizes.known(sweep.builder, config.data)
  sweep.check_cache(images.get('train', 0) + images.get('validation', 0))
  # What is alike but for the seed is several runs of one.
  found: dict[tuple[str, str, tuple[str, ...]], tuple[int, plan.Pair]] = {}
  for jobs in sweep.jobs_left():
    pair, phases = jobs[0].pair, tuple(job.phase for job in jobs)
    runs, _ = found.get((pair.teacher, pair.student, phases), (0, pair))
    found[pair.teacher, pair.student, phases] = runs + 1, pair
  planned = [
      dry_run.PlannedPhase(
          config=pair.config, built=sweep.networks(pair), phases=phases, runs=runs,
          pair=f'{teacher} -> {student}' if phases[0].startswith('student/') else teacher)
      for (teacher, student, phases), (runs, pair) in found.items()]
  text = dry_run.describe(planned, images, config.dry_run_seconds)
  return '\n'.join([*(f'left out: {reason}' for reason in sweep.left_out.values()), text])
