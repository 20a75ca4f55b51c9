"""What a method sees of a batch."""
import dataclasses
from collections.abc import Callable, Mapping

import jax

from kdih.distillation.signal import TeacherSignal
from kdih.models.taps import Output


@dataclasses.dataclass(frozen=True)
class Lesson:
  """One training batch, as far as it lies on this device, and what there is to know of it.

  Attributes:
    images: float [batch, height, width, channels], augmented.
    labels: int32 [batch].
    student: what learns, in training mode.
    teacher: what the frozen teachers say, in evaluation mode, without gradients.
    weights: {rule: [members]}, of mean 1 over all members; see `kdih.cohort.member_weights`. Empty
      unless taught by the cohort.
    index: int32 [batch], the images' numbers in the train split.
    train_labels: int32 [size of the train split], -1 for images that are not trained with; None
      unless the method `needs_train_labels`.
    epoch: float scalar, epochs since the phase began.
    key: for random numbers, the same on every device. With `index` folded in, an image gets the
      same numbers on whichever device it lies.
    gather: puts the same array of all devices together along its leading axis. What couples the
      images of a batch has to see all of them.
  """

  images: jax.Array
  labels: jax.Array
  student: Output
  teacher: TeacherSignal = TeacherSignal()
  weights: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
  index: jax.Array | None = None
  train_labels: jax.Array | None = None
  epoch: jax.Array | float = 0.0
  key: jax.Array | None = None
  gather: Callable[[jax.Array], jax.Array] = lambda array: array
