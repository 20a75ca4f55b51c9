"""A loader over arrays that a test knows, and what a step is fed with."""
from collections.abc import Callable

import numpy as np
import optax

from kdih.data import augment
from kdih.runtime import devices
from kdih.training import steps_per_call
from kdih.training.step import compile_train_step, make_train_step
from kdih.training.task import Task


class Arrays:
  """A loader over arrays that the test knows."""

  def __init__(self, count: int, shape=(8, 8, 1), classes: int = 10):
    rng = np.random.default_rng(0)
    self.resident = {'image': rng.integers(0, 256, (count, *shape), dtype=np.uint8),
                     'label': rng.integers(0, classes, count, dtype=np.int32)}

  def feeds(self, batches):
    return iter(batches)

  def gather(self, resident, feed):
    return {**feed, **{name: array[feed['index']] for name, array in resident.items()}}


PREPROCESS = augment.make_preprocess(mean=(0.3,), std=(0.4,), padding=1, padding_mode='zeros',
                                     flip=True)


def compiled_step(
    task: Task, tx: optax.GradientTransformation, loader: Arrays, steps_per_epoch: float = 3.0,
    **options,
) -> Callable:
  """The step of a student over all devices; `options` are those of `make_train_step`."""
  return compile_train_step(
      make_train_step(task, tx, steps_per_epoch=steps_per_epoch, **options), task, loader)


def fed(batches, sizes):
  """What calls of so many updates are fed with."""
  return steps_per_call.stacked(map(devices.shard, batches), sizes)
