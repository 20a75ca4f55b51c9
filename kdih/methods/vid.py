"""VID: variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835)."""
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """Maximises the likelihood of the teacher's features under a Gaussian given the student's.

      term = sum_i mean(((m_i(f^S_i) - f^T_i)^2 / v_i + log v_i) / 2)

  over the taps i. The mean m_i is three 1x1 convolutions with as many channels as the teacher's
  feature and a ReLU after the first two. The variance v_i = softplus(s_i) + 1e-5 is one trained
  number for each channel, 5 at first. The larger of two maps is average-pooled to the size of the
  smaller. The term, a negative log-likelihood without the constant log(2 pi) / 2, may be negative.

  Source: Ahn et al., CVPR 2019, arXiv 1904.05835, section 3.

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  @nn.compact
  def term(self, lesson):
    sized = [features.same_size(*pair) for pair in features.pairs(lesson)]
    return sum(_Unlikelihood(name=f'tap{number}')(student, teacher)
               for number, (student, teacher) in enumerate(sized, 1))


class _Unlikelihood(nn.Module):
  """Computes the term of one tap, [batch], from two maps of the same height and width."""

  @nn.compact
  def __call__(self, student: jax.Array, teacher: jax.Array) -> jax.Array:
    channels = teacher.shape[-1]
    mean = student
    for number in (1, 2, 3):
      if number > 1:
        mean = nn.relu(mean)
      mean = layers.conv(
          channels, 1, kernel_init=layers.PYTORCH_DEFAULT, name=f'conv{number}')(mean)
    initial = math.log(math.expm1(5 - 1e-5))  # The inverse of the variance at 5.
    scale = self.param('scale', nn.initializers.constant(initial), (channels,))
    variance = (nn.softplus(scale) + 1e-5).reshape(1, 1, 1, channels)
    return 0.5 * ((mean - teacher)**2 / variance + jnp.log(variance)).mean((1, 2, 3))
