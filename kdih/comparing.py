"""A sweep at work: teachers first, then each run once, whatever the number of processes."""
import time
import traceback

import filelock
import jax
import ml_collections
from etils import epath

from kdih import (
  data,
  errors,
  estimating,
  grid,
  modules,
  phases,
  pipeline,
  students,
  validation,
)
from kdih.experiment import Experiment
from kdih.modules import Modules
from kdih.progress import say
from kdih.workdir import Workdir, read_json, resolved, write_json

_PAUSE = 2.0  # Seconds between two looks at what other processes are doing.
_FREE = ('student', 'methods')  # What a teacher and its heads do not depend on.


class _Sweep:
  """What the runs share, and who does what.

  Args:
    config: checked.
    path: of the workdir.
  """

  def __init__(self, config: ml_collections.ConfigDict, path: epath.PathLike):
    self.config, self.path = config, epath.Path(path)
    self.builder = data.open_builder(config.data)
    spec = data.describe(self.builder, config.data)
    self.left_out: dict[str, str] = {}
    self.pairs: list[grid.Pair] = []
    self._built: dict[tuple[str, str], Modules] = {}
    for pair in grid.pairs(config):
      self._add(pair, spec)
    if not self.pairs:
      raise errors.ConfigError(next(iter(self.left_out.values())))
    self.runs = grid.runs(config, self.pairs)
    self.begun = time.time()
    self.failures: dict[str, str] = {}

  def _add(self, pair: grid.Pair, spec: data.DataSpec) -> None:
    """Takes up the pair with the methods that fit it, and notes the others."""
    while pair.methods:
      try:
        self._built[pair.teacher, pair.student] = modules.build(pair.config, spec)
        self.pairs.append(pair)
        return
      except errors.UnfitError as error:
        self.left_out[f'{pair.teacher}/{pair.student}/{error.method}'] = str(error)
        pair = pair.without(error.method)

  def modules(self, pair: grid.Pair) -> Modules:
    """Those of a pair."""
    return self._built[pair.teacher, pair.student]

  def teachers(self, pair: grid.Pair) -> Workdir:
    """The workdir of a pair's teacher and heads."""
    return Workdir(grid.pair_folder(self.path, pair.teacher), _FREE)

  def check(self) -> None:
    """Raises ConfigError where the workdir holds runs of another config; writes nothing."""
    Workdir(self.path).check(self.config)
    for pair in self.pairs:
      self.teachers(pair).check(pair.config)
    for run in self.runs:
      Workdir(run.folder(self.path)).check(run.config)

  def lock(self, name: str) -> filelock.FileLock:
    """Of a teacher or a run, over all processes that share the workdir."""
    folder = self.path / 'locks'
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f'{grid.folder_name(name)}.lock')


def run(config: ml_collections.ConfigDict, path: epath.PathLike) -> dict[str, str]:
  """Does what no other process does or has done, and returns {run: why it failed}.

  Args:
    config: from a config file; `config.sweep` says what to run.
    path: the workdir. There `<teacher>/` is the workdir of a teacher and its heads, and
      `<teacher>/<student>/seed<seed>/` that of the students with this seed, by all methods.

  Raises:
    ConfigError: a setting is wrong, or a method does not fit a pair; nothing has been written.
  """
  validation.check(config)
  if '://' in str(path):
    raise errors.ConfigError(f'--workdir: {path} is no folder of a file system, and processes '
                             'cannot share it safely; choose a local or mounted folder')
  sweep = _Sweep(config, path)
  sweep.check()
  for reason in sweep.left_out.values():
    say(f'sweep: left out: {reason}')
  pipeline.check_devices(config)
  splits = pipeline.open_splits(config, sweep.builder)
  _write_sweep(sweep)
  pipeline.enable_compilation_cache()
  for pair in {pair.teacher: pair for pair in sweep.pairs}.values():
    _train_teacher(sweep, pair, splits)
  pending = sweep.runs
  while pending:
    left = [one for one in pending if not _settle(sweep, one, splits)]
    if len(left) == len(pending):
      time.sleep(_PAUSE)  # Other processes are at all of them.
    pending = left
  return sweep.failures


def _write_sweep(sweep: _Sweep) -> None:
  """Writes `sweep.json`: what the sweep consists of."""
  sweep.path.mkdir(parents=True, exist_ok=True)
  write_json(sweep.path / 'sweep.json', {
      'pairs': [[pair.teacher, pair.student] for pair in sweep.pairs],
      'methods': list(sweep.pairs[0].methods), 'seeds': list(sweep.config.sweep.seeds),
      'config': resolved(sweep.config)})


def _train_teacher(sweep: _Sweep, pair: grid.Pair, splits: data.Splits) -> None:
  """Trains the teacher of a pair and its heads, as far as the methods ask for them."""
  taught_by = {method.taught_by for one in sweep.pairs if one.teacher == pair.teacher
               for method in sweep.modules(one).methods.values()}
  if taught_by == {'labels'}:
    return
  workdir = sweep.teachers(pair)
  with sweep.lock(pair.teacher):
    experiment = Experiment(pair.config, sweep.modules(pair), workdir, splits)
    workdir.open(pair.config)
    phases.run_teacher(experiment)
    if 'cohort' in taught_by:
      phases.run_heads(experiment)


def _settle(sweep: _Sweep, one: grid.Run, splits: data.Splits) -> bool:
  """Trains the run unless another process has it; returns whether it is over."""
  workdir = Workdir(one.folder(sweep.path))
  try:
    with sweep.lock(one.name).acquire(blocking=False):
      if not (workdir.result(f'student/{one.method}') or _failed_meanwhile(sweep, one)):
        _try(sweep, one, workdir, splits)
      return True
  except filelock.Timeout:
    return False


def _try(sweep: _Sweep, one: grid.Run, workdir: Workdir, splits: data.Splits) -> None:
  """Trains the run; what it fails of is written down, and the sweep goes on."""
  say(f'sweep: {one.name}')
  failure = workdir.path / 'student' / one.method / 'failure.json'
  experiment = Experiment(one.config, sweep.modules(one.pair), workdir, splits,
                          sweep.teachers(one.pair))
  try:
    workdir.open(one.config)
    failure.unlink(missing_ok=True)
    students.run_student(experiment, one.method)
  except Exception as error:  # Whatever happens to one run must not end the others.
    reason = errors.first_line(error)
    sweep.failures[one.name] = reason
    failure.parent.mkdir(parents=True, exist_ok=True)
    write_json(failure, {'error': reason, 'time': time.time(),
                         'traceback': traceback.format_exc()})
    say(f'sweep: {one.name} failed: {reason}')
  finally:
    jax.clear_caches()


def _failed_meanwhile(sweep: _Sweep, one: grid.Run) -> bool:
  """Whether another process has tried the run since this one began."""
  failure = read_json(one.folder(sweep.path) / 'student' / one.method / 'failure.json')
  if failure is None or failure['time'] < sweep.begun:
    return False
  sweep.failures[one.name] = failure['error']
  return True


def estimate(config: ml_collections.ConfigDict, path: epath.PathLike) -> str:
  """What the sweep would cost, as text; nothing is trained or written."""
  validation.check(config)
  sweep = _Sweep(config, path)
  sweep.check()
  table = estimating.describe(sweep.pairs, [sweep.modules(pair) for pair in sweep.pairs],
                              len(config.sweep.seeds), sweep.builder)
  return '\n'.join([*(f'left out: {reason}' for reason in sweep.left_out.values()), table])
