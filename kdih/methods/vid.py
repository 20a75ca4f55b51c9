"""Variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835, section 3)."""
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """How likely the teacher's features are, given the student's, at every tap.

  The teacher's feature is Gaussian: its mean m is the student's feature after three 1x1
  convolutions of as many channels as the teacher's, a ReLU after the first two, and its variance
  v = softplus(s) + 1e-5 is one number per channel, 5 at first. The term is the sum over the taps
  of the mean of ((m - f_T)^2 / v + log v) / 2; it may be below 0. The larger map is average-pooled
  to the size of the smaller.
  """

  @nn.compact
  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    sized = [features.same_size(*pair) for pair in features.pairs(lesson)]
    return sum(_Unlikelihood(name=f'tap{number}')(student, teacher)
               for number, (student, teacher) in enumerate(sized, 1))


class _Unlikelihood(nn.Module):
  """Two maps, [batch, H, W, C_S] and [batch, H, W, C_T], to the negative log-likelihood, [batch].

  Per number, and without the constant log(2 pi) / 2.
  """

  @nn.compact
  def __call__(self, student: jax.Array, teacher: jax.Array) -> jax.Array:
    channels = teacher.shape[-1]
    mean = student
    for number in (1, 2, 3):
      if number > 1:
        mean = nn.relu(mean)
      mean = layers.conv(
          channels, 1, kernel_init=layers.PYTORCH_DEFAULT, name=f'conv{number}')(mean)
    initial = math.log(math.expm1(5 - 1e-5))  # So that the variance is 5.
    scale = self.param('scale', nn.initializers.constant(initial), (channels,))
    variance = (nn.softplus(scale) + 1e-5).reshape(1, 1, 1, channels)
    return 0.5 * ((mean - teacher)**2 / variance + jnp.log(variance)).mean((1, 2, 3))
