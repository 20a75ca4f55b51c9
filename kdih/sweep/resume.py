"""Whether a sweep can resume: whether its workdir holds runs of the same recipe and identity."""
import contextlib
import dataclasses
import functools
import itertools

from etils import epath

from kdih import errors
from kdih.config import protocol
from kdih.data import identity as data_identity
from kdih.data.splits import Splits
from kdih.phases import cache_plan, exported_variables, identity, memory, pipeline, resume
from kdih.phases.experiment import Experiment
from kdih.phases.identity import Identity
from kdih.runtime import files, run_files
from kdih.runtime.workdir import Workdir, named_in_errors, resolved
from kdih.sweep import plan
from kdih.sweep.jobs import Job, Sweep


class Checks:
  """Compares a sweep with earlier commands and runs in its workdir.

  Args:
    sweep: to compare.

  Raises:
    ConfigError: the workdir holds runs of another config, a teacher that cannot be used, or other
      variables than a result names; nothing has been written.
  """

  def __init__(self, sweep: Sweep):
    self._sweep = sweep
    self._identities: dict[tuple[str, str], Identity] = {}
    self._accepted: dict[epath.Path, list[str]] = {}  # Accepted differences, by workdir.
    self._compared = 0  # Commands of `sweep.json`, to which later commands are appended.
    self._known: dict[str, None] = {}  # Differences of the config that those have accepted.
    self._differences: dict[str, None] = {}  # Accepted differences to commands and runs here.
    pipeline.check_devices(sweep.config)
    resume.check_config(Workdir(sweep.path), resolved(sweep.config))
    self._check_commands(self._commands())
    for teachers, pair in sweep.teacher_workdirs():
      self._accepted[teachers.path] = resume.check_config(
          teachers, resolved(pair.config), student=False)
    for pair in sweep.pairs:
      pipeline.check_existing(pair.config, sweep.networks(pair), sweep.teachers(pair))
    for workdir, run in sweep.student_workdirs():
      self._accepted[workdir.path] = resume.check_config(workdir, resolved(run.config))
    for folder in sorted(sweep.path.glob('*/*/seed*')):  # These runs share a table with ours.
      self._differences |= dict.fromkeys(resume.check_swept(
          Workdir(folder), resolved(sweep.pairs[0].config), self._known))
    for job in itertools.chain.from_iterable(sweep.jobs()):
      if result := job.workdir.result(job.phase):
        exported_variables.check_exported(job.workdir.path / job.phase, result)
      else:
        job.workdir.check_phase(job.phase)

  def _commands(self) -> list[dict]:
    """Returns the earlier commands. Raises as `run_files.read`."""
    return run_files.read(self._sweep.path / 'sweep.json', list[run_files.SweepCommand]) or []

  def _check_commands(self, commands: list[dict]) -> None:
    """Raises ConfigError if an earlier command has another recipe than this one.

    The runs of a command may not have begun: then their folders do not show the recipe.
    """
    now, new = resolved(self._sweep.config), commands[self._compared:]
    self._compared = len(commands)
    self._known |= dict.fromkeys(line for command in new for line in command.get('accepted', ()))

    def compared(config: dict, before: dict) -> dict:
      common = sorted(_methods(before) & _methods(now))
      return {**protocol.swept(config), **protocol.methods(config, common)}

    for command in new:
      before = command['config']
      self._differences |= dict.fromkeys(resume.compare_configs(
          self._sweep.path / 'sweep.json', before, now,
          functools.partial(compared, before=before), self._known))

  def identify(self, splits: Splits) -> None:
    """Finds the identity of every run. Raises ConfigError if it differs from an earlier one."""
    sweep = self._sweep
    content = data_identity.identify(sweep.builder, sweep.config.data, splits)
    for pair in sweep.pairs:
      self._identities[pair.key] = identity.collect(
          sweep.networks(pair), sweep.teachers(pair), content)
    for teachers, pair in sweep.teacher_workdirs():
      now = self._identities[pair.key].of_teachers()
      self._accepted[teachers.path] += resume.check(teachers, now, resolved(pair.config))
    for workdir, run in sweep.student_workdirs():
      now = self._identities[run.pair.key]
      self._accepted[workdir.path] += resume.check(workdir, now, resolved(run.config))

  def check_cache(self, num_examples: int) -> None:
    """Raises ConfigError if `config.compute.cache` cannot be used for so many images."""
    for pair in self._sweep.pairs:
      left = [job.phase for job in self._sweep.teaching(pair) if not job.is_done]
      config = plan.changed(pair.config, phases=(*left, 'student'))
      cache_plan.check(config, self._sweep.networks(pair), self._sweep.teachers(pair).path,
                       num_examples)

  def check_memory(self, splits: Splits) -> None:
    """Raises ConfigError if a phase that is left cannot fit into the memory of a device."""
    left: dict[tuple[str, str], dict[str, plan.Pair]] = {}
    for job in itertools.chain.from_iterable(self._sweep.jobs_left()):
      left.setdefault(job.pair.key, {})[job.phase] = job.pair
    for phases in left.values():
      pair = next(iter(phases.values()))
      memory.check(pair.config, self._sweep.networks(pair), splits, phases)

  def record(self, splits: Splits) -> None:
    """Adds this command to `sweep.json`, and accepted differences to the manifests of the runs.

    Later commands need not accept these differences again.
    """
    sweep = self._sweep
    try:
      sweep.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.ConfigError(f'--workdir: {sweep.path} cannot be made ({error.strerror}); '
                               'choose another folder') from error
    with contextlib.ExitStack() as stack:
      with named_in_errors(sweep.path):
        stack.enter_context(files.locked(
            sweep.path / '.sweep.lock', waiting='sweep: waits for another process'))
      before = self._commands()
      self._check_commands(before)  # Another command may have begun since the first check.
      command = {
          'pairs': [[pair.teacher, pair.student, list(pair.methods)] for pair in sweep.pairs],
          'left_out': sweep.left_out, 'seeds': list(sweep.config.sweep.seeds),
          'config': resolved(sweep.config)}
      if self._differences:
        command['accepted'] = list(self._differences)
      if command not in before:
        run_files.write(sweep.path / 'sweep.json', [*before, command])
    for job in itertools.chain.from_iterable(sweep.jobs()):
      if self._accepted[job.workdir.path] and job.workdir.manifest():
        self.experiment(job, splits).open()

  def experiment(self, job: Job, splits: Splits) -> Experiment:
    """Returns the run that a job belongs to."""
    teachers = self._sweep.teachers(job.pair)
    now = self._identities[job.pair.key]
    if job.workdir.path == teachers.path:
      now = now.of_teachers()
    accepted = dict.fromkeys(
        (*self._accepted[teachers.path], *self._accepted[job.workdir.path]))
    return Experiment(job.config, self._sweep.networks(job.pair), job.workdir, splits, teachers,
                      dataclasses.replace(now, accepted=tuple(accepted)))


def _methods(config: dict) -> set[str]:
  """Returns the entries of `config.methods` that a sweep with this config names."""
  return set(config['sweep']['methods'] or config['student']['methods'])
