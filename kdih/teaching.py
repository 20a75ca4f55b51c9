"""What a method sees of a batch (`Lesson`), and what every method is (`Method`)."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import losses
from kdih.taps import Features, Output

STUDENT = 'student'  # As the name of a model: one like the student.


@dataclasses.dataclass(frozen=True)
class Lesson:
  """One training batch, as far as it lies on this device, and what there is to know of it.

  Attributes:
    images: float [batch, height, width, channels], augmented.
    labels: int32 [batch].
    student: what learns, in training mode.
    teacher: what the frozen teacher says, in evaluation mode, without gradients; None for a
      method that is taught by labels.
    members: logits of the cohort, heads in tap order, then `final`; empty unless taught by it.
    weights: {rule: [members]}, of mean 1; see `kdih.cohort.weigh`. Empty unless taught by it.
    index: int32 [batch], the images' numbers in the train split.
    train_labels: int32 [size of the train split], -1 for images that are not trained with; None
      unless the method `needs_train_labels`.
    epoch: float scalar, epochs since the phase began.
    key: for random numbers, the same on every device. With `index` folded in, an image gets the
      same numbers on whichever device it lies.
    gather: puts the same array of all devices together along its leading axis. What couples the
      images of a batch has to see all of them.
    heard: what the method's `hearing` says, [batch, numbers], where that was computed before; None
      where teacher and members say it.
  """

  images: jax.Array
  labels: jax.Array
  student: Output
  teacher: Output | None = None
  members: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
  weights: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
  index: jax.Array | None = None
  train_labels: jax.Array | None = None
  epoch: jax.Array | float = 0.0
  key: jax.Array | None = None
  gather: Callable[[jax.Array], jax.Array] = lambda array: array
  heard: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Hearing:
  """All that a method hears of its teachers, where that is a row of numbers for each image.

  Attributes:
    name: says what the rows hold; methods that hear the same have the same.
    rows: (teacher, members, weights), see `Lesson`, to [batch, numbers].
  """

  name: str
  rows: Callable[[Any, Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]


LOGITS = Hearing("the teacher's logits", lambda teacher, members, weights: teacher.logits)


@dataclasses.dataclass(frozen=True)
class Context:
  """What a method is made for.

  Attributes:
    num_members: size of the cohort, the teacher's own classifier included.
    axis_name: for batch norms, see `kdih.models.layers.batch_norm`.
    model: makes a model for the data set by its name; `STUDENT` makes one like the student.
    method: makes the method of another entry of `config.methods`.
    mean_soft_label: teach by the cohort's mean soft label where its members share a temperature.
  """

  num_members: int = 1
  axis_name: str | None = None
  model: Callable[[str], nn.Module] = lambda name: nn.Module()
  method: Callable[[str], 'Method'] = lambda name: Method(Context())
  mean_soft_label: bool = True


class Method(nn.Module):
  """How the student is taught: a loss, as a linen module whose fields are the method's options.

  What it defines in `setup` or `__call__` is trained beside the student, kept in its checkpoints
  and left out of the exported student: parameters, `batch_stats`, and the collection `memory` for
  what is kept from step to step without gradients (the same on every device). Parameters that a
  loss does not depend on stay as they are.

  Attributes:
    context: what it is made for.
  """

  context: Context

  @property
  def taught_by(self) -> str:
    """'labels', 'teacher' or 'cohort': what has to be there before it."""
    return 'teacher'

  @property
  def prepares(self) -> bool:
    """Whether `prepare` is to be trained before the loss itself."""
    return False

  @property
  def hearing(self) -> Hearing | None:
    """What `hear` gives, if it is all that the loss hears of the teachers; it can be cached."""
    return None

  @nn.nowrap
  def hear(self, lesson: Lesson) -> jax.Array:
    """The rows of `hearing`, [batch, numbers]."""
    if lesson.heard is not None:
      return lesson.heard
    return self.hearing.rows(lesson.teacher, lesson.members, lesson.weights)  # type: ignore

  @property
  def needs_train_labels(self) -> bool:
    """Whether it reads `Lesson.train_labels`."""
    return False

  @property
  def couples(self) -> bool:
    """Whether the loss of an image depends on the others of its batch, which then cannot be cut
    into parts."""
    return False

  @property
  def assistants(self) -> tuple[str, ...]:
    """Names of models that are taught one after the other, each by the one before and the first
    by the teacher, until the last one teaches the student."""
    return ()

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError where an option is wrong, with a line that begins with its name."""

  def __call__(self, lesson: Lesson) -> jax.Array:
    """The loss: [batch], or a scalar where it couples the images of a batch.

    Raises:
      ValueError: this teacher cannot teach this student so; the reason.
    """
    raise NotImplementedError

  def prepare(self, lesson: Lesson) -> jax.Array:
    """The loss of the phase before; as `__call__`."""
    raise NotImplementedError


class FeatureMethod(Method):
  """Cross-entropy and a term that compares what lies before the logits.

      cross_entropy * CE(z, y) + weight * term

  Attributes:
    cross_entropy: weight of the labels, 0 or more.
    weight: of the term, above 0.
  """

  cross_entropy: float
  weight: float

  @nn.nowrap
  def check(self) -> None:
    """See `Method.check`; whoever overrides it calls this one too."""
    if not self.cross_entropy >= 0:
      raise ValueError(f'cross_entropy: {self.cross_entropy} is below 0; 1 is usual')
    if not 0 < self.weight < float('inf'):
      raise ValueError(f'weight: {self.weight} is not above 0')

  def term(self, lesson: Lesson) -> jax.Array:
    """The unweighted term: [batch] or scalar; see `Method.__call__`."""
    raise NotImplementedError

  def __call__(self, lesson: Lesson) -> jax.Array:
    """[batch] or scalar; see `Method.__call__`."""
    label_loss = losses.cross_entropy(lesson.student.logits, lesson.labels)
    return self.cross_entropy * label_loss.mean() + self.weight * self.term(lesson).mean()


def pairs(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """The student's and the teacher's features, tap by tap.

  Raises:
    ValueError: they are not equally many, or they are no maps.
  """
  student, teacher = lesson.student.features, _teacher(lesson).features
  _check_counts(student, teacher)
  for feature in (*student.values(), *teacher.values()):
    if feature.ndim != 4:
      raise ValueError(f'a tap has the shape {feature.shape[1:]}; maps (height, width, channels) '
                       'are needed; choose config.student.taps and config.student.teacher_taps')
  return list(zip(student.values(), teacher.values(), strict=True))


def preactivation_pairs(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """As `pairs`, before the last ReLU. Raises ValueError where a model does not tell it."""
  pairs(lesson)
  outputs = {'student': lesson.student, 'teacher': _teacher(lesson)}
  for role, output in outputs.items():
    missing = output.features.keys() - output.preactivations.keys()
    if missing:
      raise ValueError(f'the {role} does not sow what lies before the ReLU of {min(missing)!r} '
                       "into the collection 'preactivations'")
  student, teacher = ([output.preactivations[tap] for tap in output.features]
                      for output in outputs.values())
  return list(zip(student, teacher, strict=True))


def embeddings(lesson: Lesson) -> tuple[jax.Array, jax.Array]:
  """What the classifiers of student and teacher read, [batch, width] each.

  Raises:
    ValueError: a model does not tell it.
  """
  found: list[Any] = [lesson.student.embedding, _teacher(lesson).embedding]
  for role, embedding in zip(('student', 'teacher'), found, strict=True):
    if embedding is None:
      raise ValueError(f"the {role} does not sow 'embedding', the input of its classifier, into "
                       "the collection 'intermediates'")
  return found[0], found[1]


def pool_to(feature: jax.Array, height: int, width: int) -> jax.Array:
  """Adaptive average pooling: [batch, H, W, C] to [batch, height, width, C], PyTorch's windows."""
  for axis, side in ((1, height), (2, width)):
    size = feature.shape[axis]
    windows = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
    feature = jnp.stack([jnp.mean(jax.lax.slice_in_dim(feature, start, stop, axis=axis), axis=axis)
                         for start, stop in windows], axis=axis)
  return feature


def same_size(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two maps, the larger pooled to the height and width of the smaller."""
  height, width = (min(sizes) for sizes in zip(one.shape[1:3], other.shape[1:3], strict=True))
  return tuple(f if f.shape[1:3] == (height, width) else pool_to(f, height, width)
               for f in (one, other))  # type: ignore[return-value]


def _teacher(lesson: Lesson) -> Output:
  if lesson.teacher is None:
    raise ValueError('it compares with a teacher, and is taught by labels')
  return lesson.teacher


def _check_counts(student: Features, teacher: Features) -> None:
  if not student or len(student) != len(teacher):
    raise ValueError(
        f'the student has {len(student)} taps ({", ".join(student)}) and the teacher '
        f'{len(teacher)} ({", ".join(teacher)}); choose equally many with config.student.taps and '
        'config.student.teacher_taps')
