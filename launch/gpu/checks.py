"""Checks that kdih works on the GPU of this machine, and times several students and steps per call.

  python -m launch.gpu.checks RESULTS.json SECONDS

Each part is a process of its own. RESULTS.json is written again whenever a part has ended; it lacks
the parts that are not done after SECONDS. `measure.sh` sets the caches of compiled programs.

  step      Compares one training step of DIH on the CPU, in full float32, with the same step on the
            GPU, in full float32 and with the settings of a run.
  repeat    Trains twenty steps in two fresh processes, with the flags of a run and with others, and
            compares their bits.
  killed    Compares a run on the digits with one that is killed and resumed: accuracies and bits.
            It needs TFDS.
  times     Times several students in one program, and several steps in one call.
  kernels   Counts the kernels, copies and fills that the device executes in a step, and their time.
"""
import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

_SMALL = bool(os.environ.get('REHEARSE'))
_PAIR, _BATCH_SIZE, _RUNS = ('resnet8' if _SMALL else 'resnet20', 'resnet8'), 8 if _SMALL else 64, 5
_UPDATES = [1, 2] if _SMALL else [1, 10, 50]  # In one call of the loop.
_STUDENTS = {f'{way}_{count}': (count, way) for count, way in (
    [(1, 'vmap'), (2, 'vmap')] if _SMALL else
    [(1, 'vmap'), (3, 'vmap'), (8, 'vmap'), (16, 'vmap'), (3, 'unrolled'), (8, 'unrolled')])}
_FREE = '--xla_gpu_deterministic_ops=false'
_FLAGS = {'default': '', 'excluding': f'{_FREE} --xla_gpu_exclude_nondeterministic_ops=true',
          'free': _FREE}
_ALONE = 100  # Seconds that are reserved for `times` and `kernels`.
# By default XLA makes no CUDA graphs while the profiler runs.
_WATCHED = '--xla_enable_command_buffers_during_profiling=true'


def _lab() -> tuple[Any, Any]:
  """Returns the models, with the same numbers on every device, and the student's problem."""
  import jax

  from kdih.benchmark import programs

  with jax.default_matmul_precision('highest'):
    lab = programs.make_pair(*_PAIR, _BATCH_SIZE, 'float32', programs.made_images())
  return lab, programs.student_problem(lab, 'dih')


def _train(updates: int) -> tuple[Any, Any, float]:
  """Returns the variables before and after this number of updates, and the last loss."""
  from kdih.benchmark import programs
  from kdih.runtime import devices

  _, problem = _lab()
  training = programs.Training(problem)
  state, frozen, resident, _ = training.arguments()
  for feed in problem.feeds(0, [1] * updates):
    state, metrics = training.step(state, frozen, resident, feed)
  return training.initial.variables, devices.to_host(state.variables), float(
      metrics['loss'][0])


def step(file: str) -> None:
  """Writes the logits of student and teacher, and the loss and the update of a step."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from kdih.benchmark import programs
  from kdih.models import registry, taps

  before, after, loss = _train(1)
  lab, _ = _lab()
  images = lab.data.preprocess(
      jnp.asarray(lab.examples.read(np.arange(_BATCH_SIZE))[0]), jnp.arange(_BATCH_SIZE), None)
  logits = {}
  for name, model, variables in (('teacher', _PAIR[0], lab.frozen['teacher']),
                                 ('student', _PAIR[1], lab.student)):
    module = registry.create(model, programs.SPEC.num_classes)
    logits[name] = jax.jit(lambda variables, images, module=module: taps.observe(
        module, variables, images, (), train=False)[0].logits)(variables, images)
  updates = [new - old for new, old in zip(
      jax.tree.leaves(after['params']), jax.tree.leaves(before['params']), strict=True)]
  np.savez(file, loss=np.float64(loss), update=np.concatenate([x.ravel() for x in updates]),
           teacher_logits=np.asarray(logits['teacher']),
           student_logits=np.asarray(logits['student']))


def repeat(file: str) -> None:
  """Writes digests of the variables before and after twenty steps."""
  from kdih.runtime import digests

  before, after, loss = _train(20)
  _write(file, {'before': digests.of(before), 'after': digests.of(after), 'loss': loss})


def warm(file: str, name: str) -> None:
  """Compiles the program that `times` measures under this name, for the cache."""
  next(item for item in _items() if item.name == name).seconds(1)
  _write(file, {})


def times(file: str) -> None:
  """Times all programs in turns."""
  from kdih.benchmark import measuring, results
  from kdih.runtime import provenance

  found = measuring.measure(_items(), _RUNS)
  _write(file, {
      **provenance.collect(), 'pair': _PAIR, 'batch': _BATCH_SIZE, 'precision': 'float32',
      'runs': _RUNS,
      'items': {name: results.item_results(_BATCH_SIZE, measured)
                for name, measured in found.items()},
      # Of N students over one student, and of a step in a call of N steps over a call of one.
      'over_one': {name: measured.median / found[
          'vmap_1' if name in _STUDENTS else 'updates_1'].median
                   for name, measured in found.items()}})


def _items() -> list[Any]:
  from kdih.benchmark import programs

  _, problem = _lab()
  # With one update in a call the time of the host would be measured.
  together = {name: programs.Training(problem, students=count, together_by=way,
                                      updates=_UPDATES[-1])
              for name, (count, way) in _STUDENTS.items()}
  return [*(training.item(name, _UPDATES[-1]) for name, training in together.items()),
          *(together['vmap_1'].loop_item(f'updates_{count}', 4, count) for count in _UPDATES)]


def kernels(file: str) -> None:
  """Counts the kernels of calls of many updates on a GPU; another device has none."""
  import jax

  from kdih.benchmark import programs

  _, problem = _lab()
  calls = programs.Training(problem, updates=_UPDATES[-1]).item('update', _UPDATES[-1])
  calls.seconds(1)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      calls.seconds(1)
    path, = pathlib.Path(folder).glob('**/*.xplane.pb')
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes if plane.name.startswith('/device:GPU')
              for line in plane.lines if line.name.startswith('Stream') for event in line.events]
  # An item makes one call more than it times.
  _write(file, {'pair': _PAIR, 'batch': _BATCH_SIZE, **_counted(events, 2 * _UPDATES[-1])})


def _counted(events: Sequence[Any], updates: int) -> dict[str, Any]:
  seconds: collections.Counter[str] = collections.Counter()
  for event in events:
    seconds[event.name] += event.duration_ns / 1e9
  times = collections.Counter(event.name for event in events)
  return {'kernels_an_update': len(events) / updates,
          'busy_s_an_update': seconds.total() / updates,
          'longest': [{'name': name, 'an_update': times[name] / updates,
                       'share': spent / seconds.total()}
                      for name, spent in seconds.most_common(15)]}


def killed(file: str, work: str) -> None:
  """Compares a run on the digits with one that is killed while its student learns."""
  folders = {name: pathlib.Path(work) / name for name in ('whole', 'killed')}
  processes = {name: _digits(folder) for name, folder in folders.items()}
  checkpoints = folders['killed'] / 'student' / 'dih' / 'checkpoints'
  while processes['killed'].poll() is None and len(_steps(checkpoints)) < 2:
    time.sleep(0.05)
  processes['killed'].kill()
  processes['killed'].wait()
  at = _steps(checkpoints)
  processes['killed'] = _digits(folders['killed'])
  codes = {name: process.wait() for name, process in processes.items()}
  found = {name: _phases(folder) for name, folder in folders.items()}
  whole, other = ({phase: values['fingerprint'] for phase, values in run.items()}
                  for run in found.values())
  _write(file, {'exit_codes': codes, 'killed_after_steps': at,
                'same_bits': bool(whole) and whole == other, 'phases': found})


def _digits(folder: pathlib.Path) -> subprocess.Popen:
  # It logs as often as it evaluates: then all calls of a phase have one size, and compile once.
  return subprocess.Popen(
      [sys.executable, '-m', 'kdih.main', '--config=configs/digits.py', f'--workdir={folder}',
       '--config.student.methods=dih', '--config.log_every_steps=18'], stdout=subprocess.DEVNULL)


def _steps(checkpoints: pathlib.Path) -> list[int]:
  return sorted(int(folder.name) for folder in checkpoints.glob('*') if folder.name.isdecimal())


def _phases(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the content of the result files of a run, by phase."""
  from kdih.runtime import run_files

  found = {}
  for path in sorted(folder.glob('**/result.json')):
    phase = str(path.parent.relative_to(folder))
    result = run_files.read_result(folder, phase)
    found[phase] = {
        key: result.get(key) for key in ('val', 'test_last', 'fingerprint', 'seconds',
                                         'examples_per_second')}
  return found


def _write(file: str | pathlib.Path, content: Any) -> None:
  pathlib.Path(file).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


class _Parts:
  """Processes that each do a part, and the files that they write to a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._running: dict[str, subprocess.Popen] = {}
    self.codes: dict[str, int] = {}

  def start(self, name: str, part: str, *arguments: str, **variables: str) -> None:
    """Starts a part with these environment variables; '' removes one."""
    environment = {key: value for key, value in {**os.environ, **variables}.items() if value}
    with (self.folder / f'{name}.log').open('w') as log:
      self._running[name] = subprocess.Popen(
          [sys.executable, '-m', __spec__.name, part, str(self.folder / name), *arguments],
          env=environment, stderr=log, start_new_session=True)

  def wait(self, until: float) -> None:
    """Returns when all parts have ended; kills the others, with their children, after `until`."""
    for name, process in self._running.items():
      try:
        self.codes[name] = process.wait(max(until - time.monotonic(), 0.01))
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        self.codes[name] = process.wait()
      if self.codes[name]:
        lines = (self.folder / f'{name}.log').read_text().strip().split('\n')
        print(f'{name}: exit {self.codes[name]}: {lines[-1]}', file=sys.stderr)
    self._running = {}

  def read(self, name: str) -> Any:
    """Returns the JSON that a part wrote, None if there is none."""
    path = self.folder / name
    return json.loads(path.read_text()) if path.exists() else None


def main(out: str, seconds: str) -> None:
  """Does all parts, writes their results and prints a summary."""
  end = time.monotonic() + float(seconds)
  work = pathlib.Path(tempfile.mkdtemp())
  parts = _Parts(work)
  exact = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  parts.start('cpu.npz', 'step', JAX_PLATFORMS='cpu', **exact)
  parts.start('exact.npz', 'step', **exact)
  parts.start('run.npz', 'step')
  for name, flags in _FLAGS.items():
    for number in (1, 2):  # Without a cache: the second would reuse the first's programs.
      parts.start(f'{name}_{number}', 'repeat', XLA_FLAGS=flags, JAX_COMPILATION_CACHE_DIR='')
  for name in (*_STUDENTS, *(f'updates_{count}' for count in _UPDATES)):
    parts.start(f'warm_{name}', 'warm', name)
  parts.start('warm_kernels', 'warm', 'vmap_1', XLA_FLAGS=_WATCHED)
  parts.start('killed', 'killed', str(work / 'runs'))
  parts.wait(end - _ALONE)
  content = {
      'step': {name: _apart(work / f'{name}.npz', work / 'cpu.npz') for name in ('exact', 'run')},
      'repeat': {name: _repeated(parts, name) for name in _FLAGS},
      'killed': parts.read('killed')}
  _write(out, content)
  print(json.dumps({'step': content['step'], 'repeat': content['repeat']}, indent=1))
  parts.start('times', 'times')
  parts.wait(end)
  _write(out, {**content, 'times': parts.read('times'), 'exit_codes': parts.codes})
  parts.start('kernels', 'kernels', XLA_FLAGS=_WATCHED)
  parts.wait(end)
  _write(out, {**content, 'times': parts.read('times'), 'kernels': parts.read('kernels'),
               'exit_codes': parts.codes})
  print(_table(content['killed'], parts.read('times')))
  shutil.rmtree(work, ignore_errors=True)


def _apart(one: pathlib.Path, other: pathlib.Path) -> dict[str, float] | None:
  """Returns the norm of the difference over the norm, for each array; None if a file is missing."""
  import numpy as np

  if not (one.exists() and other.exists()):
    return None
  with np.load(one) as found, np.load(other) as expected:
    return {name: float(np.linalg.norm(found[name] - expected[name])
                        / np.linalg.norm(expected[name])) for name in expected}


def _repeated(parts: _Parts, name: str) -> dict[str, Any] | None:
  one, other = (parts.read(f'{name}_{number}') for number in (1, 2))
  if not (one and other):
    return None
  return {'flags': _FLAGS[name], 'same_before': one['before'] == other['before'],
          'same_bits': one['after'] == other['after'], 'losses': [one['loss'], other['loss']]}


def _table(run: Any, measured: Any) -> str:
  lines = []
  if run:
    lines += [f'killed after {run["killed_after_steps"]}: same bits {run["same_bits"]}',
              *(f'{phase}: {json.dumps(values["test_last"])}'
                for phase, values in run['phases']['whole'].items())]
  if measured:
    lines += [f'{name:12} {1e3 * item["median_s"]:8.3f} ms, {measured["over_one"][name]:.2f}'
              for name, item in measured['items'].items()]
  return '\n'.join(lines)


if __name__ == '__main__':
  if sys.argv[1] in ('step', 'repeat', 'warm', 'times', 'kernels', 'killed'):
    from kdih.runtime import environment as environment_lib

    if sys.argv[1] != 'killed':
      environment_lib.set_environment({'deterministic': True})  # The default of a run.
    globals()[sys.argv[1]](*sys.argv[2:])
  else:
    main(*sys.argv[1:])
