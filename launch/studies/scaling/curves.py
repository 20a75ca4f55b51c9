"""Step times on this machine: medians of repeats that take turns, so that all see the same load."""
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
from launch.studies.scaling.problem import Setup

logger = logging.getLogger(__name__)


def setups(smallest: bool) -> dict[str, dict[Any, Setup]]:
  """{curve: {where on it: what is timed}}; `smallest` is for a try-out that takes seconds."""
  if smallest:
    base = Setup('resnet8', 'resnet8', 8, image_size=8, num_classes=10)
  else:
    base = Setup('resnet20', 'resnet8', 64)
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


def measure(name: str, curve: Mapping[int, Setup], repeats: int) -> list[dict[str, Any]]:
  """Times every setup of a curve `repeats` times, in turns.

  Returns:
    For each, in order: 'at'; 'seconds', all of them; 'parameters' that the student learns, and
    'head_parameters'.
  """
  calls: dict[int, Callable[[], float]] = {}
  workers: list[subprocess.Popen] = []
  try:
    for at, setup in curve.items():
      logger.info(f'{name}: compiles {at}')
      if name == 'devices':
        workers.append(_worker(at, setup))
        calls[at] = _asked(workers[-1])
      else:
        calls[at] = _timed(problem.stepper(problem.build(setup)))
    seconds: dict[int, list[float]] = {at: [] for at in calls}
    for _ in range(repeats):
      for at, call in calls.items():
        seconds[at].append(call())
  finally:
    for worker in workers:
      worker.communicate()
  rows = []
  for at, setup in curve.items():
    made = problem.build(setup)
    rows.append({'at': at, 'seconds': seconds[at],
                 'parameters': cost.count_parameters(made.state.params),
                 'head_parameters': cost.count_parameters(made.frozen.get('heads', {}))})
  return rows


def _timed(call: Callable[[], None]) -> Callable[[], float]:
  """Seconds of a call; the first, which compiles, is made here."""
  def timed() -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun

  timed()
  return timed


def _worker(devices: int, setup: Setup) -> subprocess.Popen:
  """A process that sees so many CPU devices, and steps when it is asked."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  return subprocess.Popen(
      [sys.executable, '-m', __name__, json.dumps(dataclasses.asdict(setup))],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _asked(worker: subprocess.Popen) -> Callable[[], float]:
  questions, answers = worker.stdin, worker.stdout
  assert questions and answers

  def ask() -> float:
    questions.write('step\n')
    questions.flush()
    return float(answers.readline())

  ask()
  return ask


def _serve(text: str) -> None:
  call = _timed(problem.stepper(problem.build(Setup(**json.loads(text)))))
  for _ in sys.stdin:
    print(call(), flush=True)


def summary(rows: Sequence[Mapping[str, Any]], reference: int) -> list[dict[str, float]]:
  """For each row the median, and the quartiles, in milliseconds; and its ratio to `reference`.

  The ratio is the median over the repeats of those within one turn.
  """
  base = next(row['seconds'] for row in rows if row['at'] == reference)
  found = []
  for row in rows:
    low, middle, high = statistics.quantiles(row['seconds'], n=4, method='inclusive')
    ratio = statistics.median(a / b for a, b in zip(row['seconds'], base, strict=True))
    found.append({'at': row['at'], 'ms': 1e3 * middle, 'low': 1e3 * low, 'high': 1e3 * high,
                  'ratio': ratio, 'head_parameters': row['head_parameters']})
  return found


if __name__ == '__main__':
  _serve(sys.argv[1])
