"""Whether kdih works on the GPU of this machine, and how cost grows with students and calls.

  python -m launch.gpu.checks RESULTS.json SECONDS

Each part is a process of its own; RESULTS.json is written anew when one has ended, and what is not
done after SECONDS is missing there. `measure.sh` sets the caches that programs are kept in.

  step      One training step of DIH, in full float32 on the CPU, the same on the GPU, and there as
            a run makes it.
  repeat    Twenty steps in two fresh processes that compile side by side, with the flags of a run
            and with others: whether they end with the same bits.
  killed    A run on the digits, and another that is killed and goes on: their accuracies, and
            whether they end with the same bits. It needs TFDS.
  times     Students in one program, and updates in one call: timed alone.
  kernels   What the device does during an update: with which kernels, copies and fills it is busy,
            and how long.
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
_UPDATES = [1, 2] if _SMALL else [1, 10, 50]  # Of one call of the loop.
_STUDENTS = {f'{way}_{count}': (count, way) for count, way in (
    [(1, 'vmap'), (2, 'vmap')] if _SMALL else
    [(1, 'vmap'), (3, 'vmap'), (8, 'vmap'), (16, 'vmap'), (3, 'unrolled'), (8, 'unrolled')])}
_FREE = '--xla_gpu_deterministic_ops=false'
_FLAGS = {'default': '', 'excluding': f'{_FREE} --xla_gpu_exclude_nondeterministic_ops=true',
          'free': _FREE}
_ALONE = 100  # Seconds that are kept for `times` and `kernels`.
# Else XLA makes no CUDA graphs while it is watched.
_WATCHED = '--xla_enable_command_buffers_during_profiling=true'


def _lab() -> tuple[Any, Any]:
  """Returns the pair, with the same numbers on every device, and the student's problem."""
  import jax

  from kdih.benchmark import programs

  with jax.default_matmul_precision('highest'):
    lab = programs.make_lab(*_PAIR, _BATCH_SIZE, 'float32', programs.made_images())
  return lab, programs.student_problem(lab, 'dih')


def _train(updates: int) -> tuple[Any, Any, float]:
  """Returns the variables before and after so many updates, and the last loss."""
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
  """Keeps the logits of student and teacher, and the loss and the update of a step."""
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
  """Says by a digest what twenty steps end with."""
  from kdih.runtime import digests

  before, after, loss = _train(20)
  _write(file, {'before': digests.of(before), 'after': digests.of(after), 'loss': loss})


def warm(file: str, name: str) -> None:
  """Compiles what `times` measures under this name, for the cache."""
  next(item for item in _items() if item.name == name).seconds(1)
  _write(file, {})


def times(file: str) -> None:
  """Measures all in turns."""
  from kdih.benchmark import measuring, results
  from kdih.runtime import provenance

  found = measuring.measure(_items(), _RUNS)
  _write(file, {
      **provenance.collect(), 'pair': _PAIR, 'batch': _BATCH_SIZE, 'precision': 'float32',
      'runs': _RUNS,
      'items': {name: results.of_item(_BATCH_SIZE, measured) for name, measured in found.items()},
      # Of an update of so many students, and of an update of a loop with so many in a call.
      'over_one': {name: measured.median / found[
          'vmap_1' if name in _STUDENTS else 'updates_1'].median
                   for name, measured in found.items()}})


def _items() -> list[Any]:
  from kdih.benchmark import programs

  _, problem = _lab()
  # Of one update a call, the host would be what is measured.
  together = {name: programs.Training(problem, students=count, together_by=way,
                                      updates=_UPDATES[-1])
              for name, (count, way) in _STUDENTS.items()}
  return [*(training.item(name, _UPDATES[-1]) for name, training in together.items()),
          *(together['vmap_1'].loop_item(f'updates_{count}', 4, count) for count in _UPDATES)]


def kernels(file: str) -> None:
  """Counts what runs on the GPU in calls of many updates; on another device it finds nothing."""
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
  # An item makes a call more than it times.
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
  # Lines as often as it evaluates, so that all calls of a phase are of one size.
  return subprocess.Popen(
      [sys.executable, '-m', 'kdih.main', '--config=configs/digits.py', f'--workdir={folder}',
       '--config.student.methods=dih', '--config.log_every_steps=18'], stdout=subprocess.DEVNULL)


def _steps(checkpoints: pathlib.Path) -> list[int]:
  return sorted(int(folder.name) for folder in checkpoints.glob('*') if folder.name.isdecimal())


def _phases(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what the result files of a run say."""
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
  """Processes that each do a part, and the files that they leave in a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._running: dict[str, subprocess.Popen] = {}
    self.codes: dict[str, int] = {}

  def start(self, name: str, part: str, *arguments: str, **variables: str) -> None:
    """Starts one; `variables` of the environment, where '' is none."""
    environment = {key: value for key, value in {**os.environ, **variables}.items() if value}
    with (self.folder / f'{name}.log').open('w') as log:
      self._running[name] = subprocess.Popen(
          [sys.executable, '-m', __spec__.name, part, str(self.folder / name), *arguments],
          env=environment, stderr=log, start_new_session=True)

  def wait(self, until: float) -> None:
    """Returns once all have ended; what has not by then is killed, with all that it started."""
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
    """Returns the JSON of one, None if it left none."""
    path = self.folder / name
    return json.loads(path.read_text()) if path.exists() else None


def main(out: str, seconds: str) -> None:
  """Does all parts and says what they found."""
  end = time.monotonic() + float(seconds)
  work = pathlib.Path(tempfile.mkdtemp())
  parts = _Parts(work)
  exact = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  parts.start('cpu.npz', 'step', JAX_PLATFORMS='cpu', **exact)
  parts.start('exact.npz', 'step', **exact)
  parts.start('run.npz', 'step')
  for name, flags in _FLAGS.items():
    for number in (1, 2):  # Without a cache: the second would take the programs of the first.
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
  """Returns the norm of the difference over the norm, of each array."""
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
