"""Results as finished phases report them, made up."""
from typing import Any

import matplotlib.image
import numpy as np


def measured(top1: float, agreement: float | None = None, **others: Any) -> dict:
  """A classifier with `top1` on test; 1 point less after the last step, 2 more on validation."""
  test = {'top1': top1, 'top5': 0.95, 'loss': 1.23456}
  if agreement is not None:
    test['agreement'] = agreement
  return {'val': {'top1': top1 + 0.02, 'top5': 0.96, 'loss': 1.1},
          'test_last': {**test, 'top1': top1 - 0.01}, 'test_best_val': test, **others}


def result(top1: float, agreement: float | None = None, **others: Any) -> dict:
  """What a finished phase reports."""
  return measured(top1, agreement, **{
      'parameters': 1234, 'seed': 3, 'steps': 78200, 'seconds': 61.25,
      'examples_per_second': 2412.4, 'model': 'net', 'fingerprint': 'f',
      'method': {'kind': 'ce'}, **others})


def heads(*taps: str) -> dict:
  members = {tap: measured(0.5, 0.6, parameters=650) for tap in taps}
  members |= {'final': measured(0.8), 'mean': measured(0.7, 0.9)}
  return result(0.7, 0.9, members=members)


def read_png(path: Any) -> np.ndarray:
  """Pixels [height, width, 4] in 0..1."""
  return matplotlib.image.imread(path)
