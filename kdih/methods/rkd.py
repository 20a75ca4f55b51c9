"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068, section 3)."""
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kdih.distillation import features, options
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Distances between two images and angles between three, by their embeddings.

      distance mean_ij H(d^S_ij, d^T_ij) + angle mean_ijk H(c^S_ijk, c^T_ijk)

  with Huber's loss H (delta 1), d the distances over their mean between different images, and
  c_ijk the cosine of the angle at i between j and k, 0 where i is j or k or two images have one
  embedding. Means are over batch^2 and batch^3 entries, which c takes in memory.

  Attributes:
    distance: weight of the distances, 0 or more.
    angle: weight of the angles, 0 or more; one of both is above 0.
  """

  couples = True

  distance: options.Weight
  angle: options.Weight

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    if not self.distance + self.angle:
      raise ValueError('distance: and angle are both 0, so that nothing is compared')

  def term(self, lesson):
    """Scalar; see `kdih.distillation.method.FeatureMethod`."""
    rows = map(lesson.gather, features.embeddings(lesson))
    student, teacher = (e[None] - e[:, None] for e in rows)  # [batch, batch, width].
    return (self.distance * _huber(_distances(student), _distances(teacher))
            + self.angle * _huber(_cosines(student), _cosines(teacher)))


def _distances(differences: jax.Array) -> jax.Array:
  """d, [batch, batch]; all 0 where all images have one embedding."""
  squares = (differences * differences).sum(-1)
  apart = squares > 0  # The root has no gradient at 0.
  lengths = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
  number = len(lengths)
  mean = lengths.sum() / max(number * (number - 1), 1)
  return lengths / jnp.where(mean > 0, mean, 1)


def _cosines(differences: jax.Array) -> jax.Array:
  """c, [batch, batch, batch]."""
  directions = features.unit(differences)
  return features.products(directions, directions)


def _huber(student: jax.Array, teacher: jax.Array) -> jax.Array:
  return optax.losses.huber_loss(student, teacher).mean()
