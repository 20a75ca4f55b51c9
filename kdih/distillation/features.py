"""Features and embeddings of student and teacher, brought together to be compared."""
from typing import Any

import jax
import jax.numpy as jnp

from kdih.distillation.lesson import Lesson
from kdih.distillation.signal import TeacherSignal


def pairs(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """The student's and the teacher's features, tap by tap.

  Raises:
    ValueError: they are not equally many, or they are no maps.
  """
  student = lesson.student.features
  teacher = _teacher(lesson).features
  if not student or len(student) != len(teacher):
    raise ValueError(
        f'the student has {len(student)} taps ({", ".join(student)}) and the teacher '
        f'{len(teacher)} ({", ".join(teacher)}); choose equally many with config.student.taps and '
        'config.student.teacher_taps')
  for feature in (*student.values(), *teacher.values()):
    if feature.ndim != 4:
      raise ValueError(f'a tap has the shape {feature.shape[1:]}; maps (height, width, channels) '
                       'are needed; choose config.student.taps and config.student.teacher_taps')
  return list(zip(student.values(), teacher.values(), strict=True))


def preactivation_pairs(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """As `pairs`, before the last ReLU. Raises ValueError where a model does not tell it."""
  pairs(lesson)
  outputs: dict[str, Any] = {'student': lesson.student, 'teacher': _teacher(lesson)}
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


def _teacher(lesson: Lesson) -> TeacherSignal:
  if lesson.teacher.logits is None:
    raise ValueError('it compares with a teacher, and is taught by labels')
  return lesson.teacher


def unit(vectors: jax.Array) -> jax.Array:
  """Each vector of the last axis over its length; one shorter than 1e-12 is 0, without gradient.

  PyTorch's `normalize` divides the latter by 1e-12, which makes their gradients as much larger.
  """
  squares = (vectors * vectors).sum(-1, keepdims=True)
  long = squares > 1e-12**2
  return jnp.where(long, vectors * jax.lax.rsqrt(jnp.where(long, squares, 1)), 0)


def products(one: jax.Array, other: jax.Array) -> jax.Array:
  """Inner products of all with all, [..., n, width] and [..., m, width] to [..., n, m].

  In full float32: what accelerators may take instead leaves a cosine three digits, and what is
  compared here differs in less.
  """
  return jnp.einsum('...nw,...mw->...nm', one, other, precision=jax.lax.Precision.HIGHEST)
