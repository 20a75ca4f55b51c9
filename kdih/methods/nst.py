"""NST: neuron selectivity transfer (Huang and Wang, 2017, arXiv 1707.01219)."""
import jax

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Matches the distributions of the channels' activation maps of student and teacher.

      term = sum_i [mean k(t, t') + mean k(s, s') - 2 mean k(s, t)],   k(a, b) = (a . b)^2

  over the taps i: the squared maximum mean discrepancy between the student's channels s and the
  teacher's channels t at the tap. A channel is its map, flattened to [H * W] and divided by its
  norm. The larger of two maps is average-pooled to the size of the smaller.

  Source: Huang and Wang, 2017, arXiv 1707.01219, section 4, with the polynomial kernel of degree 2
  and without a constant.

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  def term(self, lesson):
    sized = [map(_channels, features.same_size(*pair)) for pair in features.pairs(lesson)]
    return sum(_kernel(teacher, teacher) + _kernel(student, student)
               - 2 * _kernel(student, teacher) for student, teacher in sized)


def _channels(feature: jax.Array) -> jax.Array:
  """Returns the maps of a feature's channels, divided by their norms, [batch, C, H * W]."""
  batch, _, _, channels = feature.shape
  return features.unit(feature.reshape(batch, -1, channels).swapaxes(1, 2))


def _kernel(one: jax.Array, other: jax.Array) -> jax.Array:
  """Returns the mean of k over all pairs of channels, [batch]."""
  return (features.products(one, other)**2).mean((1, 2))
