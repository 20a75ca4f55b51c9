"""ReviewKD: distillation via knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044)."""
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
  """Trains each feature of the student, fused with all deeper ones, to match the teacher's.

      term = w sum_i HCL(g_i, f^T_i),   w = min(epoch / warmup_epochs, 1),
      HCL(s, t) = sum_l w_l mean((pool_l(s) - pool_l(t))^2) / sum_l w_l,   w_l = 1, 1/2, 1/4, 1/8

  over the levels i: the taps, and last the embedding, as a map of one pixel. From the deepest
  level upwards, attention-based fusion (ABF) computes g_i from the student's feature and from the
  fused feature of the next deeper level. The pools l of the hierarchical context loss (HCL) are
  the whole map and its average pooling to 4x4, 2x2 and 1x1, as far as these are smaller than the
  map. The student's features are taken after their ReLU, the teacher's before it.

  Source: Chen et al., CVPR 2021, arXiv 2104.09044, section 3, and the authors' code for CIFAR,
  which counts whole epochs; here the epoch is a fraction that grows with every step from 0.

  Attributes:
    width: channels of a fused feature; 0 stands for the width of the student's embedding, at most
      512, as in the authors' code.
    warmup_epochs: epochs in which the weight of the term rises from 0; 0 for no warm-up.
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  width: Annotated[int, Whole(0, 65536)]
  warmup_epochs: options.Epochs

  @nn.compact
  def term(self, lesson):
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
  """ABF: a weighted sum of the student's feature and the next deeper fused one, at each pixel.

  Attributes:
    width: channels of the fused feature.
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  width: int
  axis_name: Any

  @nn.compact
  def __call__(
      self, student: jax.Array, deeper: jax.Array | None, shape: tuple[int, ...]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (a feature of shape `shape` to compare, the fused feature [batch, H, W, width])."""
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
    # The authors' initialisation: uniform within the square root of 3 / fan-in.
    x = layers.conv(features, kernel_size, kernel_init=nn.initializers.lecun_uniform(),
                    name=name)(x)
    return layers.batch_norm(train=True, axis_name=self.axis_name, name=f'{name}_norm')(x)


def _levels(lesson: Lesson) -> list[tuple[jax.Array, jax.Array]]:
  """Returns (student's map, teacher's map) of each level, from the shallowest to the embedding."""
  students = [student for student, _ in features_lib.pairs(lesson)]
  teachers = [teacher for _, teacher in features_lib.preactivation_pairs(lesson)]
  pixels = [embedding[:, None, None] for embedding in features_lib.embeddings(lesson)]
  return list(zip([*students, pixels[0]], [*teachers, pixels[1]], strict=True))


def _resized(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns x, [batch, H, W, C], resized to the height and width of `shape`.

  The interpolation is PyTorch's 'nearest'.
  """
  for axis in (1, 2):
    x = x.take(np.arange(shape[axis]) * x.shape[axis] // shape[axis], axis=axis)
  return x


def _context_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns HCL, [batch], for two maps of the same shape."""
  sides = [side for side in (4, 2, 1) if side < student.shape[1]]
  difference = student - teacher  # Pooling is linear.
  maps = [difference, *(features_lib.pool_to(difference, side, side) for side in sides)]
  weights = [0.5**i for i in range(len(maps))]
  errors = [weight * (x**2).mean((1, 2, 3)) for weight, x in zip(weights, maps, strict=True)]
  return jnp.stack(errors).sum(0) / sum(weights)
