"""RKD: relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kdih.distillation import features, options
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Matches the distances between pairs and the angles in triples of images, by their embeddings.

      term = distance mean_ij H(d^S_ij, d^T_ij) + angle mean_ijk H(c^S_ijk, c^T_ijk)

  over all pairs and triples of images of the global batch, with the Huber loss H (delta 1). d_ij
  is the distance between the embeddings of i and j, divided by the mean distance between different
  images. c_ijk is the cosine of the angle at i between j and k; it is 0 if i is j or k, or if two
  of the embeddings are equal. The cosines take memory for batch^3 numbers.

  Source: Park, Kim, Lu and Cho, CVPR 2019, arXiv 1904.05068, section 3.

  Attributes:
    distance: weight of the distances, at least 0.
    angle: weight of the angles, at least 0; distance or angle is above 0.
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  couples = True

  distance: options.Weight
  angle: options.Weight

  @nn.nowrap
  def check(self):
    if not self.distance + self.angle:
      raise ValueError('distance: and angle are both 0; set one of them above 0')

  def term(self, lesson):
    rows = map(lesson.gather, features.embeddings(lesson))
    student, teacher = (e[None] - e[:, None] for e in rows)  # [batch, batch, width].
    return (self.distance * _huber(_distances(student), _distances(teacher))
            + self.angle * _huber(_cosines(student), _cosines(teacher)))


def _distances(differences: jax.Array) -> jax.Array:
  """Returns d, [batch, batch]; all 0 if all embeddings are equal."""
  squares = (differences * differences).sum(-1)
  apart = squares > 0  # The square root has no gradient at 0.
  lengths = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
  number = len(lengths)
  mean = lengths.sum() / max(number * (number - 1), 1)
  return lengths / jnp.where(mean > 0, mean, 1)


def _cosines(differences: jax.Array) -> jax.Array:
  """Returns c, [batch, batch, batch]."""
  directions = features.unit(differences)
  return features.products(directions, directions)


def _huber(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return optax.losses.huber_loss(student, teacher).mean()
