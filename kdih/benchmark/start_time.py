"""Measures the time from the start of a process to its first step, with a compilation cache.

  python -m kdih.benchmark.start_time resnet110 resnet8 64 float32

makes this first step in a process of its own, and prints a line when it is done.
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
  """Returns the seconds of the `first` start, with an empty cache, and of the `second` start.

  The time includes imports, initialisation, compilation and the step, but no reading of data.
  """
  command = [sys.executable, '-m', __name__, teacher, student, str(batch_size), precision]
  with tempfile.TemporaryDirectory() as cache:
    environment = {
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',  # Cache small programs too.
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # The parent process may use the device.
    return {name: _seconds(command, environment) for name in ('first', 'second')}


def _seconds(command: list[str], environment: dict[str, str]) -> float:
  begun = time.perf_counter()
  child = subprocess.run(command, env=environment, capture_output=True, text=True)
  seconds = time.perf_counter() - begun
  if _DONE not in child.stdout:
    reason = child.stderr.strip().split('\n')[-1]
    raise errors.TrainingError(f'--measure=start: the process of the first step failed: {reason}')
  return seconds


def main(argv: list[str]) -> None:
  """Makes the first step of the pair and batch size that the command line `argv` names."""
  teacher, student, batch_size, precision = argv[1:]
  pair = programs.make_pair(teacher, student, int(batch_size), precision, programs.made_images())
  training = programs.Training(programs.student_problem(pair, 'dih'))
  jax.block_until_ready(training.step(*training.arguments()))
  print(_DONE, flush=True)


if __name__ == '__main__':
  main(sys.argv)
