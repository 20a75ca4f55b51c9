"""Small fixed lessons, to hold methods against independent computations."""
import jax
import jax.numpy as jnp
import numpy as np

from kdih import methods
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context, Terms
from kdih.distillation.signal import TeacherSignal
from kdih.models.taps import Output

BATCH, CLASSES = 4, 5
LABELS = np.array([4, 0, 2, 2], np.int32)
# As a student and a teacher that is wider: two taps each.
STUDENT_SHAPES = ((4, 4, 3), (2, 2, 5))
TEACHER_SHAPES = ((4, 4, 6), (2, 2, 8))


def output(seed: int, shapes=STUDENT_SHAPES, width: int = 5) -> Output:
  """Random logits, post-ReLU features of `shapes`, what lies before it, an embedding of `width`."""
  rng = np.random.default_rng(seed)
  before = {f'stage{i}': rng.normal(size=(BATCH, *shape)) for i, shape in enumerate(shapes, 1)}
  return Output(
      single(rng.normal(scale=2, size=(BATCH, CLASSES))),
      {tap: single(np.maximum(feature, 0)) for tap, feature in before.items()},
      {tap: single(feature) for tap, feature in before.items()},
      single(rng.normal(size=(BATCH, width))))


def signal(said: Output, members=()) -> TeacherSignal:
  """What a teacher says, with `members` [batch, classes] of a cohort if there are any."""
  stacked = jnp.stack([single(logits) for logits in members], axis=1) if len(members) else None
  return TeacherSignal(
      logits=said.logits, features=said.features, preactivations=said.preactivations,
      embedding=said.embedding, members=stacked)


def lesson(student_shapes=STUDENT_SHAPES, teacher_shapes=TEACHER_SHAPES, **changes) -> Lesson:
  """A lesson of random outputs; `changes` replace its fields."""
  fields = dict(
      images=single(np.random.default_rng(9).normal(size=(BATCH, 8, 8, 1))),
      labels=jnp.asarray(LABELS), student=output(1, student_shapes),
      teacher=signal(output(2, teacher_shapes, width=8)), index=jnp.arange(BATCH, dtype=jnp.int32),
      key=jax.random.key(5))
  return Lesson(**{**fields, **changes})


def make(options: dict, context: Context | None = None, **changes):
  """The method of these options."""
  return methods.create('mine', {**options, **changes}, context or Context())


def initial(method, batch: Lesson):
  """The variables of a method."""
  return jax.jit(lambda: method.init(jax.random.key(1), batch))()


def total(terms: Terms) -> jax.Array:
  """The sum of the terms: [batch], or a scalar where each of them couples the images."""
  return sum(terms.values())


def mean(terms: Terms) -> jax.Array:
  """The loss of the batch, as a step takes it: the sum of the means of the terms."""
  return sum(term.mean() for term in terms.values())


def single(array) -> jax.Array:
  """As a float32 array on the device."""
  return jnp.asarray(array, jnp.float32)


def numerical_gradient(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
  """Central differences of a scalar function of a float64 array."""
  gradient = np.zeros_like(array)
  for position in np.ndindex(array.shape):
    shift = np.zeros_like(array)
    shift[position] = step
    gradient[position] = (function(array + shift) - function(array - shift)) / (2 * step)
  return gradient
