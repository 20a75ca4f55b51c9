"""Look-up of cached teacher signals by image and view.

A table holds a row of numbers for every view ('slot', see `kdih.data.augment`) of every training
image. A step gets the row of the view that it draws.
"""
import jax
import jax.numpy as jnp
import numpy as np

from kdih.cohort.cache import rows as rows_lib
from kdih.data.augment import Preprocess
from kdih.distillation.signal import TeacherSignal
from kdih.runtime import devices
from kdih.training import state
from kdih.training.task import Signals


class _Table(Signals):
  """The base of both kinds of table; `_like` is a signal of the shapes that the rows hold."""

  _like: TeacherSignal

  def blank(self, frozen, size, image_shape):
    del frozen, image_shape
    return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:])), self._like)


class HostTable(_Table):
  """A table in the memory of the host, or on its disk; rows are sent to the devices by batch.

  Args:
    rows: [images, slots, width].
    like: a signal of the shapes that the rows hold.
    subset: int32 [images], the images' numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(
      self, rows: np.ndarray, like: TeacherSignal, subset: np.ndarray, preprocess: Preprocess):
    self.resident, self.axes = {}, {}
    self._rows, self._like, self._subset = rows, like, subset
    self._draw = jax.jit(lambda index, seed, step: preprocess.draw(
        index, state.step_key(seed, step)))

  def feeds(self, batches, seed, start):
    for step, batch in enumerate(batches, start):
      with jax.default_device(_host_device()):  # There it need not wait for steps.
        slots = np.asarray(self._draw(batch['index'], np.uint32(seed), np.int32(step)))
      yield {**batch, 'signal': self._rows[np.searchsorted(self._subset, batch['index']), slots]}

  def read(self, frozen, arrays, batch, key):
    return rows_lib.unflatten(arrays['signal'], self._like)


def _host_device() -> jax.Device | None:
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS excludes the CPU.
    return None


class DeviceTable(_Table):
  """A table in the memory of the devices; each device holds an equal part of the images.

  Args:
    rows: [images, slots, width], padded to a multiple of the number of devices.
    like: a signal of the shapes that the rows hold.
    subset: int32 [images without padding], the images' numbers in the split, sorted.
    preprocess: draws the slots.
  """

  def __init__(
      self, rows: np.ndarray, like: TeacherSignal, subset: np.ndarray, preprocess: Preprocess):
    self._like, self._preprocess = like, preprocess
    self.resident = {'signals': devices.place_sharded(rows),
                     'signal_images': devices.replicate(subset)}
    self.axes = {'signals': 0, 'signal_images': None}

  def read(self, frozen, arrays, batch, key):
    """Looks rows up; every device contributes the rows of its own images."""
    position = jnp.searchsorted(arrays['signal_images'], batch.index)
    slot = self._preprocess.draw(batch.index, key)
    return rows_lib.unflatten(
        devices.look_up(arrays['signals'], position, slot), self._like)
