"""Neuron selectivity transfer (Huang and Wang, 2017, arXiv 1707.01219, section 4)."""
import jax

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """What the channels of both are selective for, as distributions of maps, at every tap.

  A channel is its map, [H * W], of length 1. The term is the sum over the taps of the squared
  maximum mean discrepancy between the student's channels s and the teacher's t,

      mean k(t, t') + mean k(s, s') - 2 mean k(s, t),   k(a, b) = (a . b)^2

  with the paper's polynomial kernel k, of degree 2 and without a constant. The larger map is
  average-pooled to the size of the smaller.
  """

  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    sized = [map(_channels, features.same_size(*pair)) for pair in features.pairs(lesson)]
    return sum(_kernel(teacher, teacher) + _kernel(student, student)
               - 2 * _kernel(student, teacher) for student, teacher in sized)


def _channels(feature: jax.Array) -> jax.Array:
  """[batch, H, W, C] to [batch, C, H * W], of length 1."""
  batch, _, _, channels = feature.shape
  return features.unit(feature.reshape(batch, -1, channels).swapaxes(1, 2))


def _kernel(one: jax.Array, other: jax.Array) -> jax.Array:
  """The mean of k over all pairs of channels, [batch]."""
  return (features.products(one, other)**2).mean((1, 2))
