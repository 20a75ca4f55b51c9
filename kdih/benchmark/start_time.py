"""How long it takes from the start of a process to its first step, with a compilation cache.

  python -m kdih.benchmark.start_time resnet110 resnet8 64 float32

makes that first step, in a process of its own, and says so.
"""
import os
import subprocess
import sys
import tempfile
import time

import jax

from kdih import errors
from kdih.benchmark import programs

_DONE = 'first step done'


def measure(teacher: str, student: str, batch_size: int, precision: str) -> dict[str, float]:
  """Seconds of the `first` start, with an empty cache, and of the `second`.

  Counted are Python's imports, initialisation, compilation and the step itself, but no data set.
  """
  command = [sys.executable, '-m', __name__, teacher, student, str(batch_size), precision]
  with tempfile.TemporaryDirectory() as cache:
    environment = {
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',  # Also what is compiled in no time.
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # The parent may hold the device.
    return {name: _seconds(command, environment) for name in ('first', 'second')}


def _seconds(command: list[str], environment: dict[str, str]) -> float:
  begun = time.perf_counter()
  child = subprocess.run(command, env=environment, capture_output=True, text=True)
  seconds = time.perf_counter() - begun
  if _DONE not in child.stdout:
    reason = child.stderr.strip().split('\n')[-1]
    raise errors.TrainingError(f'the process that makes a first step failed: {reason}')
  return seconds


def main(argv: list[str]) -> None:
  """Makes the first step that the command line `argv` names."""
  teacher, student, batch_size, precision = argv[1:]
  pair = programs.make_pair(teacher, student, int(batch_size), precision, programs.made_images())
  training = programs.Training(programs.student_problem(pair, 'dih'))
  jax.block_until_ready(training.step(*training.arguments()))
  print(_DONE, flush=True)


if __name__ == '__main__':
  main(sys.argv)
