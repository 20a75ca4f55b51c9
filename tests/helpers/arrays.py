"""A loader over arrays that a test knows, and what a step is fed with."""
import numpy as np

from kdih.data import augment
from kdih.runtime import devices
from kdih.training import steps_per_call


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


def fed(batches, sizes):
  """What calls of so many updates are fed with."""
  return steps_per_call.stacked(map(devices.shard, batches), sizes)
