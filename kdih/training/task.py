"""The learning problem of a phase, and the source of its teacher signal."""
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
# (images, index, key) to the images that a model reads, augmented if there is a key; see
# `augment.Preprocess`.
Preprocess = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


@flax.struct.dataclass
class Batch:
  """The examples of a batch that are on this device.

  Attributes:
    images: float [batch, height, width, channels], augmented and normalised.
    labels: int32 [batch].
    index: int32 [batch], the position of each image in the split.
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
  """The time of a step and its keys for random numbers.

  Attributes:
    epoch: float scalar, epochs since the phase began.
    key: key of the step, the same on every device.
    dropout_key: key of the step, different on every device.
  """

  epoch: jax.Array
  key: jax.Array
  dropout_key: jax.Array


class Signals(Protocol):
  """The source of a step's teacher signal.

  `LiveSignals` applies the teachers to the batch; the tables of `kdih.cohort.cache` hold their
  cached outputs.

  Attributes:
    resident: arrays that the step needs beside those of the loader.
    axes: for each resident array, the axis that is divided over the devices, or None.
  """

  resident: dict[str, Any]
  axes: dict[str, int | None]

  def feeds(
      self, batches: Iterator[sampling.Batch], seed: int, start: int
  ) -> Iterator[sampling.Batch]:
    """Returns the batches from step `start` on, with the arrays that the host adds for `read`."""
    del seed, start
    return batches

  def read(
      self, frozen: Any, arrays: Arrays, batch: Batch, key: jax.Array
  ) -> TeacherSignal | None:
    """Returns the signal of a batch inside a step; None if the step shall `compute` it in parts.

    Args:
      frozen: variables of the teachers.
      arrays: the resident arrays, and those that the host has added.
      batch: the examples.
      key: key of the augmentation.
    """
    raise NotImplementedError

  def compute(self, frozen: Any, images: jax.Array) -> TeacherSignal:
    """Returns the teacher signal of images inside a step; tables, which never need it, raise."""
    del frozen, images
    raise NotImplementedError

  def blank(self, frozen: Any, size: int, image_shape: tuple[int, ...]) -> TeacherSignal:
    """Returns the signal of `size` blank images, to trace programs with."""
    raise NotImplementedError


class LiveSignals(Signals):
  """Applies the teachers to the batch of every step.

  Args:
    teach: (frozen, images) to the signal.
    parts: number of parts into which a step cuts its batch. With several, the signal is computed
      for one part at a time, to save memory.
  """

  def __init__(self, teach: Callable[[Any, jax.Array], TeacherSignal], parts: int = 1):
    self.resident, self.axes = {}, {}
    self._teach, self._parts = teach, parts

  def read(self, frozen, arrays, batch, key):
    del arrays, key
    return self.compute(frozen, batch.images) if self._parts == 1 else None

  def compute(self, frozen, images):
    return self._teach(frozen, images)

  def blank(self, frozen, size, image_shape):
    return self.compute(frozen, jnp.zeros((size, *image_shape)))


# For a phase that learns from the labels alone: an empty signal.
NO_TEACHER = LiveSignals(lambda frozen, images: TeacherSignal())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """The learning problem of a phase.

  Attributes:
    loss: (params, collections, frozen, batch, signal, moment) to (terms of the loss, (new
      collections, logits of the trained classifiers by name)). It is differentiated with respect
      to `params`.
    predict: (variables, frozen, images) to logits by name, in evaluation mode.
    frozen: variables that `loss` and `predict` read and training does not change.
    preprocess: augments and normalises the stored images for training.
    signals: the source of the teacher signal.
    reference: name of the prediction with which the agreement of the others is measured; '' for
      none.
    partial: whether the loss may not depend on some of the parameters.
  """

  loss: Callable[[Any, Collections, Any, Batch, TeacherSignal, Moment],
                 tuple[Terms, tuple[Collections, Logits]]]
  predict: Callable[[Any, Any, jax.Array], Logits]
  frozen: Any
  preprocess: Preprocess
  signals: Signals = NO_TEACHER
  reference: str = ''
  partial: bool = False
