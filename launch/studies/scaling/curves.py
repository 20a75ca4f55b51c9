"""Step times on this machine: medians of repeats in turns, so that the load affects all equally."""
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdih.models import cost
from launch.studies.scaling import problem
from launch.studies.scaling.problem import Training

logger = logging.getLogger(__name__)


def points(smallest: bool) -> dict[str, dict[Any, Training]]:
  """Returns {curve: {position on the curve: the training to time}}.

  Args:
    smallest: whether to return two tiny points for each curve, for a test that takes seconds.
  """
  if smallest:
    base = Training(
        teacher='resnet8', student='resnet8', batch_size=8, image_size=8, num_classes=10)
  else:
    base = Training(teacher='resnet20', student='resnet8', batch_size=64)
  blocks = tuple(f'stage{i}_block{j}' for i in (1, 2, 3) for j in (1, 2, 3))
  heads = {0: (), 1: ('stage3',), 2: ('stage2', 'stage3'), 3: ('stage1', 'stage2', 'stage3'),
           6: (*blocks[0::2], 'stage3'), 9: blocks}
  classes = (10, 100, 1000, 10_000, 21_841)
  make = dataclasses.replace
  curves = {
      'batch': {size: make(base, batch_size=size) for size in (16, 32, 64, 128, 256, 512)},
      'depth': {depth: make(base, teacher=f'resnet{depth}')
                for depth in (8, 14, 20, 32, 44, 56, 110)},
      'heads': {count: make(base, taps=taps) for count, taps in heads.items()},
      'classes': {count: make(base, teacher='resnet8', num_classes=count) for count in classes},
      'classes_gap': {count: make(base, teacher='resnet8', num_classes=count, kind='gap')
                      for count in classes},
      'devices': dict.fromkeys((1, 2, 4, 8), base),
  }
  return {name: dict(list(curve.items())[:2]) if smallest else curve
          for name, curve in curves.items()}


def measure(name: str, curve: Mapping[int, Training], repeats: int) -> list[dict[str, Any]]:
  """Times each point of a curve `repeats` times, in turns.

  Returns:
    A row for each point, in order: its position 'at', the 'seconds' of all repeats, the trained
    'parameters' of the student, and 'head_parameters'.
  """
  calls: dict[int, Callable[[], float]] = {}
  workers: list[subprocess.Popen] = []
  try:
    for at, training in curve.items():
      logger.info(f'{name}: compiles {at}')
      if name == 'devices':
        workers.append(_worker(at, training))
        calls[at] = _remote(workers[-1])
      else:
        calls[at] = _timed(problem.stepper(problem.build(training)))
    seconds: dict[int, list[float]] = {at: [] for at in calls}
    for _ in range(repeats):
      for at, call in calls.items():
        seconds[at].append(call())
  finally:
    for worker in workers:
      worker.communicate()
  rows = []
  for at, training in curve.items():
    made = problem.build(training)
    rows.append({'at': at, 'seconds': seconds[at],
                 'parameters': cost.count_parameters(made.state.params),
                 'head_parameters': cost.count_parameters(made.frozen.get('heads', {}))})
  return rows


def _timed(call: Callable[[], None]) -> Callable[[], float]:
  """Makes the first call, which compiles, and returns a function that times further calls."""
  def timed() -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun

  timed()
  return timed


def _worker(devices: int, training: Training) -> subprocess.Popen:
  """Starts a process with this number of CPU devices that runs `_serve`."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  return subprocess.Popen(
      [sys.executable, '-m', __name__, json.dumps(dataclasses.asdict(training))],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _remote(worker: subprocess.Popen) -> Callable[[], float]:
  """Returns a function that makes the worker do one step, and returns its seconds."""
  requests, replies = worker.stdin, worker.stdout
  assert requests and replies

  def call() -> float:
    requests.write('step\n')
    requests.flush()
    return float(replies.readline())

  call()
  return call


def _serve(text: str) -> None:
  """Does one step for each line on standard input, and prints its seconds."""
  call = _timed(problem.stepper(problem.build(Training(**json.loads(text)))))
  for _ in sys.stdin:
    print(call(), flush=True)


def summary(rows: Sequence[Mapping[str, Any]], reference: int) -> list[dict[str, float]]:
  """Returns the median and the quartiles of each row in milliseconds, and its ratio to a reference.

  The ratio is taken within each turn, and the median of these ratios is returned.

  Args:
    rows: from `measure`.
    reference: the position 'at' of the row that all rows are compared with.
  """
  base = next(row['seconds'] for row in rows if row['at'] == reference)
  summaries = []
  for row in rows:
    low, middle, high = statistics.quantiles(row['seconds'], n=4, method='inclusive')
    ratio = statistics.median(a / b for a, b in zip(row['seconds'], base, strict=True))
    summaries.append({
        'at': row['at'], 'ms': 1e3 * middle, 'low': 1e3 * low, 'high': 1e3 * high, 'ratio': ratio,
        'head_parameters': row['head_parameters']})
  return summaries


if __name__ == '__main__':
  _serve(sys.argv[1])
