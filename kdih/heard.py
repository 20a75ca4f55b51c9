"""What teachers say of the views of the training images, computed before: where a step finds it.

A table holds a row of numbers for every view ('slot', see `kdih.data.preprocess`) of every image
that is trained with. The step gets the row of the view that it shows.
"""
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdih import parallel, state
from kdih.data.preprocess import Preprocess
from kdih.data.sampling import Batch

Arrays = dict[str, jax.Array]


class NoTable:
  """Teachers speak for themselves.

  Attributes:
    width: numbers in a row; 0 for no table.
    resident: arrays that the step needs beside those of the loader.
    axes: for each of them the axis that is split over the devices, or None.
  """

  def __init__(self, width: int = 0):
    self.width = width
    self.resident: dict[str, Any] = {}
    self.axes: dict[str, int | None] = {}

  def feeds(self, batches: Iterator[Batch], seed: int, start: int) -> Iterator[Batch]:
    """Adds what the host has to send to the batches of the steps from `start` on."""
    del seed, start
    return batches

  def look_up(self, resident: Arrays, index: jax.Array, key: jax.Array) -> Arrays:
    """Inside a step with this `key`: {'heard': float32 [batch, width]}, unless it was sent."""
    del resident, index, key
    return {}


class HostTable(NoTable):
  """Stays in the memory of the host, or on its disk; its rows are sent with each batch.

  Args:
    rows: [images, slots, width].
    subset: int32 [images], their numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(self, rows: np.ndarray, subset: np.ndarray, preprocess: Preprocess):
    super().__init__(rows.shape[-1])
    self._rows, self._subset = rows, subset
    self._draw = jax.jit(lambda index, seed, step: preprocess.draw(
        index, state.step_key(seed, step)))

  def feeds(self, batches, seed, start):
    """See `NoTable`."""
    for step, batch in enumerate(batches, start):
      with jax.default_device(_host_device()):  # It does not wait for the steps.
        slots = np.asarray(self._draw(batch['index'], np.uint32(seed), np.int32(step)))
      yield {**batch, 'heard': self._rows[np.searchsorted(self._subset, batch['index']), slots]}


def _host_device() -> jax.Device | None:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # Only the accelerator's platform was chosen.
    return None


class DeviceTable(NoTable):
  """Stays in the memory of the devices, of which each has an equal part of the images.

  Args:
    rows: [images, slots, width], filled up so that the devices can share the images evenly.
    subset: int32 [images without the filling], their numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(self, rows: np.ndarray, subset: np.ndarray, preprocess: Preprocess):
    super().__init__(rows.shape[-1])
    self._preprocess = preprocess
    self.resident = {'heard': parallel.split(rows), 'heard_images': parallel.replicate(subset)}
    self.axes = {'heard': 0, 'heard_images': None}

  def look_up(self, resident, index, key):
    """See `NoTable`; every device answers for its own images."""
    position = jnp.searchsorted(resident['heard_images'], index)
    slot = self._preprocess.draw(index, key)
    return {'heard': parallel.look_up(resident['heard'], position, slot)}
