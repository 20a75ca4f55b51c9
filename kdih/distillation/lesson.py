"""What a method sees of a batch."""
import dataclasses
from collections.abc import Callable, Mapping

import jax

from kdih.distillation.signal import TeacherSignal
from kdih.models.taps import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
  """One training batch on one device, with the outputs of the student and of the teachers.

  Attributes:
    images: float [batch, height, width, channels], augmented and normalised.
    labels: int32 [batch].
    student: the student's logits, features and embedding, in training mode.
    teacher: the teacher signal, computed in evaluation mode and without gradients.
    weights: {rule: [members]}, with mean 1 over the members; see `kdih.cohort.member_weights`.
      Empty unless the method is taught by the cohort.
    index: int32 [batch], the position of each image in the train split.
    train_labels: int32 [size of the train split], -1 for images that are not trained with; None
      unless the method `needs_train_labels`.
    epoch: float scalar, epochs since the phase began.
    key: key for random numbers, the same on every device. Fold `index` into it, and an image gets
      the same numbers on whichever device it lies.
    gather: concatenates the arrays of all devices along the leading axis. A term that compares the
      images of a batch with each other needs the images of all devices.
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
