"""What teachers say of the views of the training images, computed before: where a step finds it.

A table holds a row of numbers for every view ('slot', see `kdih.data.augment`) of every image
that is trained with. The step gets the row of the view that it shows.
"""
import jax
import jax.numpy as jnp
import numpy as np

from kdih.data.augment import Preprocess
from kdih.runtime import devices
from kdih.training import state
from kdih.training.task import TeacherOutputs


class HostTable(TeacherOutputs):
  """Stays in the memory of the host, or on its disk; its rows are sent with each batch.

  Args:
    rows: [images, slots, width].
    subset: int32 [images], their numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(self, rows: np.ndarray, subset: np.ndarray, preprocess: Preprocess):
    self.width, self.resident, self.axes = rows.shape[-1], {}, {}
    self._rows, self._subset = rows, subset
    self._draw = jax.jit(lambda index, seed, step: preprocess.draw(
        index, state.step_key(seed, step)))

  def feeds(self, batches, seed, start):
    """See `TeacherOutputs`."""
    for step, batch in enumerate(batches, start):
      with jax.default_device(_host_device()):  # It does not wait for the steps.
        slots = np.asarray(self._draw(batch['index'], np.uint32(seed), np.int32(step)))
      yield {**batch, 'heard': self._rows[np.searchsorted(self._subset, batch['index']), slots]}


def _host_device() -> jax.Device | None:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # Only the accelerator's platform was chosen.
    return None


class DeviceTable(TeacherOutputs):
  """Stays in the memory of the devices, of which each has an equal part of the images.

  Args:
    rows: [images, slots, width], filled up so that the devices can share the images evenly.
    subset: int32 [images without the filling], their numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(self, rows: np.ndarray, subset: np.ndarray, preprocess: Preprocess):
    self.width = rows.shape[-1]
    self._preprocess = preprocess
    self.resident = {'heard': devices.split(rows), 'heard_images': devices.replicate(subset)}
    self.axes = {'heard': 0, 'heard_images': None}

  def look_up(self, resident, index, key):
    """See `TeacherOutputs`; every device answers for its own images."""
    position = jnp.searchsorted(resident['heard_images'], index)
    slot = self._preprocess.draw(index, key)
    return {'heard': devices.look_up(resident['heard'], position, slot)}
