"""Features and embeddings of student and teacher, paired and resized to be compared."""
from typing import Any

import jax
import jax.numpy as jnp

from kdih.distillation.lesson import Lesson
from kdih.distillation.signal import TeacherSignal


def pairs(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """Returns (student's feature, teacher's feature) for each tap, [batch, H, W, C] each.

  Raises:
    ValueError: the student has no taps or not as many as the teacher, or a feature is not a map.
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
  """Returns what `pairs` does, with the features before their last ReLU.

  Raises:
    ValueError: as `pairs`; or a model does not sow the preactivation of a tap.
  """
  pairs(lesson)
  outputs: dict[str, Any] = {'student': lesson.student, 'teacher': _teacher(lesson)}
  for role, output in outputs.items():
    missing = output.features.keys() - output.preactivations.keys()
    if missing:
      raise ValueError(f'the {role} does not sow the preactivation of {min(missing)!r}, its value '
                       "before the ReLU, into the collection 'preactivations'")
  student, teacher = ([output.preactivations[tap] for tap in output.features]
                      for output in outputs.values())
  return list(zip(student, teacher, strict=True))


def embeddings(lesson: Lesson) -> tuple[jax.Array, jax.Array]:
  """Returns the inputs of the student's and the teacher's classifier, [batch, width] each.

  Raises:
    ValueError: a model does not sow its embedding.
  """
  both: list[Any] = [lesson.student.embedding, _teacher(lesson).embedding]
  for role, embedding in zip(('student', 'teacher'), both, strict=True):
    if embedding is None:
      raise ValueError(f"the {role} does not sow 'embedding', the input of its classifier, into "
                       "the collection 'intermediates'")
  return both[0], both[1]


def pool_to(feature: jax.Array, height: int, width: int) -> jax.Array:
  """Returns the adaptive average pooling of a feature, [batch, height, width, C].

  The windows are those of PyTorch's `adaptive_avg_pool2d`.

  Args:
    feature: [batch, H, W, C].
    height: of the result.
    width: of the result.
  """
  for axis, side in ((1, height), (2, width)):
    size = feature.shape[axis]
    windows = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
    feature = jnp.stack([jnp.mean(jax.lax.slice_in_dim(feature, start, stop, axis=axis), axis=axis)
                         for start, stop in windows], axis=axis)
  return feature


def same_size(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns both maps, the larger average-pooled to the height and width of the smaller."""
  height, width = (min(sizes) for sizes in zip(one.shape[1:3], other.shape[1:3], strict=True))
  return tuple(f if f.shape[1:3] == (height, width) else pool_to(f, height, width)
               for f in (one, other))  # type: ignore[return-value]


def _teacher(lesson: Lesson) -> TeacherSignal:
  if lesson.teacher.logits is None:
    raise ValueError('it compares features with those of a teacher, and there is no teacher')
  return lesson.teacher


def unit(vectors: jax.Array) -> jax.Array:
  """Returns each vector along the last axis divided by its Euclidean norm.

  A vector shorter than 1e-12 becomes 0, with the gradient 0. PyTorch's `normalize` divides it by
  1e-12 instead, which makes its gradient 1e12 times as large.
  """
  squares = (vectors * vectors).sum(-1, keepdims=True)
  long = squares > 1e-12**2
  return jnp.where(long, vectors * jax.lax.rsqrt(jnp.where(long, squares, 1)), 0)


def products(one: jax.Array, other: jax.Array) -> jax.Array:
  """Returns the inner products of all pairs of vectors, [..., n, m], in full float32.

  With an accelerator's default precision a cosine has three correct digits, and the similarities
  that methods compare differ by less.

  Args:
    one: [..., n, width].
    other: [..., m, width].
  """
  return jnp.einsum('...nw,...mw->...nm', one, other, precision=jax.lax.Precision.HIGHEST)
