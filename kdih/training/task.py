"""A task: what a phase learns, and from where its step gets the teacher signal."""
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp

from kdih.data import sampling
from kdih.distillation.method import Terms
from kdih.distillation.signal import TeacherSignal

Logits = dict[str, jax.Array]
Collections = dict[str, Any]
Arrays = dict[str, jax.Array]
# (images, index, key) to what a model sees; without a key not augmented: `augment.Preprocess`.
Preprocess = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


@flax.struct.dataclass
class Batch:
  """A batch of examples, as far as it lies on this device.

  Attributes:
    images: float [batch, height, width, channels], augmented and normalised.
    labels: int32 [batch].
    index: int32 [batch], the images' numbers in the split.
  """

  images: jax.Array
  labels: jax.Array
  index: jax.Array


def blank_batch(size: int, image_shape: tuple[int, ...]) -> Batch:
  """Returns a batch of zeros, to trace programs with."""
  zeros = jnp.zeros(size, jnp.int32)
  return Batch(jnp.zeros((size, *image_shape)), zeros, zeros)


@flax.struct.dataclass
class Moment:
  """When a step is made, and its random numbers.

  Attributes:
    epoch: float scalar, epochs since the phase began.
    key: of the step, the same on every device.
    dropout_key: another one on every device.
  """

  epoch: jax.Array
  key: jax.Array
  dropout_key: jax.Array


class Signals(Protocol):
  """From where a step gets the teacher signal of its batch.

  `LiveSignals` asks the teachers; the tables of `kdih.cohort.cache` have asked them before.

  Attributes:
    resident: arrays that the step needs beside those of the loader.
    axes: for each of them the axis that is split over the devices, or None.
  """

  resident: dict[str, Any]
  axes: dict[str, int | None]

  def feeds(
      self, batches: Iterator[sampling.Batch], seed: int, start: int
  ) -> Iterator[sampling.Batch]:
    """Adds what the host has to send to the batches of the steps from `start` on; here nothing."""
    del seed, start
    return batches

  def read(
      self, frozen: Any, arrays: Arrays, batch: Batch, key: jax.Array
  ) -> TeacherSignal | None:
    """Returns, inside a step, the signal of its batch; None where it is to `ask` part by part.

    Args:
      frozen: variables of the teachers.
      arrays: the resident ones and those that were sent.
      batch: the examples.
      key: of the augmentation.
    """
    raise NotImplementedError

  def ask(self, frozen: Any, images: jax.Array) -> TeacherSignal:
    """Returns, inside a step, what the teachers say of images; a table is not asked."""
    del frozen, images
    raise NotImplementedError

  def blank(self, frozen: Any, size: int, image_shape: tuple[int, ...]) -> TeacherSignal:
    """Returns a signal of so many images, of the right shapes, to trace programs with."""
    raise NotImplementedError


class LiveSignals(Signals):
  """The teachers say at every step what they say of the batch.

  Args:
    teach: (frozen, images) to the signal.
    parts: that a step cuts its batch into. If several, the teachers see one at a time, and no more
      of their signal is in memory.
  """

  def __init__(self, teach: Callable[[Any, jax.Array], TeacherSignal], parts: int = 1):
    self.resident, self.axes = {}, {}
    self._teach, self._parts = teach, parts

  def read(self, frozen, arrays, batch, key):
    """See `Signals`."""
    del arrays, key
    return self.ask(frozen, batch.images) if self._parts == 1 else None

  def ask(self, frozen, images):
    """See `Signals`."""
    return self._teach(frozen, images)

  def blank(self, frozen, size, image_shape):
    """See `Signals`."""
    return self.ask(frozen, jnp.zeros((size, *image_shape)))


NO_TEACHER = LiveSignals(lambda frozen, images: TeacherSignal())  # The labels alone teach.


@dataclasses.dataclass(frozen=True)
class Task:
  """One phase's learning problem.

  Attributes:
    loss: (params, collections, frozen, batch, signal, moment) to (terms of the loss, (new
      collections, logits of what is learnt)). It is differentiated with respect to `params` alone.
    predict: (variables, frozen, images) to logits by name, in evaluation mode.
    frozen: variables that the two read and nothing changes.
    preprocess: makes what the phase trains on of the images that are stored.
    signals: from where the step gets the teacher signal.
    reference: the prediction that the others' agreement is measured with; '' for none.
    partial: whether the loss may leave some of the parameters out.
  """

  loss: Callable[[Any, Collections, Any, Batch, TeacherSignal, Moment],
                 tuple[Terms, tuple[Collections, Logits]]]
  predict: Callable[[Any, Any, jax.Array], Logits]
  frozen: Any
  preprocess: Preprocess
  signals: Signals = NO_TEACHER
  reference: str = ''
  partial: bool = False
