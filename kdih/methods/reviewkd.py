"""Knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044, section 3)."""
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdih.config.values import Whole
from kdih.distillation import features as features_lib, options
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """Each feature of the student, fused with all deeper ones, imitates the teacher's there.

  The levels are the taps, and last the embedding, a map of one pixel. From the deepest level
  upwards, attention based fusion (ABF) takes in the student's feature and what the level below
  fused. The term is min(epoch / warmup_epochs, 1) times the sum over the levels of the
  hierarchical context loss (HCL),

      sum_l w_l mean((pool_l(f_S) - pool_l(f_T))^2) / sum_l w_l,   w = 1, 1/2, 1/4, 1/8

  with l the whole map, then average-pooled 4x4, 2x2 and 1x1, those that are smaller than the map
  is high. The student's features are as they are, the teacher's before their ReLU, as in the
  authors' code for CIFAR; it counts whole epochs, and here the epoch grows with every step, from 0.

  Attributes:
    width: channels of what is fused; 0 takes those of the student's embedding, 512 at most, as
      the authors do.
    warmup_epochs: until the term counts in full; 0 for at once.
  """

  width: Annotated[int, Whole(0, 65536)]
  warmup_epochs: options.Epochs

  @nn.compact
  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    width = self.width or min(512, features_lib.embeddings(lesson)[0].shape[-1])
    fused = None
    total = jnp.zeros(len(lesson.labels))
    for number, (student, teacher) in reversed(list(enumerate(_levels(lesson), 1))):
      fusion = _Fusion(width, self.context.axis_name, name=f'fusion{number}')
      learnt, fused = fusion(student, fused, teacher.shape)
      total += _context_loss(learnt, teacher)
    warmth = jnp.minimum(lesson.epoch / self.warmup_epochs, 1) if self.warmup_epochs else 1
    return warmth * total


class _Fusion(nn.Module):
  """ABF: the student's feature, 1x1, and the deeper one, each weighted pixel by pixel.

  Attributes:
    width: channels of what is fused.
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  width: int
  axis_name: Any

  @nn.compact
  def __call__(
      self, student: jax.Array, deeper: jax.Array | None, shape: tuple[int, ...]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns what is to be like a feature of `shape`, and what is fused, as large."""
    fused = self._convolved('narrow', student, self.width, 1)
    if deeper is not None:
      deeper = _resized(deeper, student.shape)
      both = jnp.concatenate([fused, deeper], axis=-1)
      attention = nn.sigmoid(layers.conv(
          2, 1, use_bias=True, kernel_init=layers.PYTORCH_DEFAULT, name='attention')(both))
      fused = fused * attention[..., :1] + deeper * attention[..., 1:]
    fused = _resized(fused, shape)
    return self._convolved('widen', fused, shape[-1], 3), fused

  def _convolved(self, name, x, features, kernel_size):
    # Uniform within the square root of 3 / fan-in, as the authors have it.
    x = layers.conv(features, kernel_size, kernel_init=nn.initializers.lecun_uniform(),
                    name=name)(x)
    return layers.batch_norm(train=True, axis_name=self.axis_name, name=f'{name}_norm')(x)


def _levels(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """The student's and the teacher's maps, from the shallowest to the embedding."""
  students = [student for student, _ in features_lib.pairs(lesson)]
  teachers = [teacher for _, teacher in features_lib.preactivation_pairs(lesson)]
  pixels = [embedding[:, None, None] for embedding in features_lib.embeddings(lesson)]
  return list(zip([*students, pixels[0]], [*teachers, pixels[1]], strict=True))


def _resized(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[batch, H, W, C] to the height and width of `shape`, by PyTorch's nearest pixel."""
  for axis in (1, 2):
    x = x.take(np.arange(shape[axis]) * x.shape[axis] // shape[axis], axis=axis)
  return x


def _context_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """HCL of two maps of one shape: [batch]."""
  sides = [side for side in (4, 2, 1) if side < student.shape[1]]
  difference = student - teacher  # Pooling is linear.
  maps = [difference, *(features_lib.pool_to(difference, side, side) for side in sides)]
  weights = [0.5**i for i in range(len(maps))]
  errors = [weight * (x**2).mean((1, 2, 3)) for weight, x in zip(weights, maps, strict=True)]
  return jnp.stack(errors).sum(0) / sum(weights)
