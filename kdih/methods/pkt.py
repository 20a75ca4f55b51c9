"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837, section 3)."""
import jax
import jax.numpy as jnp

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod

_EPSILON = 1e-7


class Method(FeatureMethod):
  """Which images of the batch are near an image, as probabilities, by their embeddings.

  With k_ij = (1 + cos(e_i, e_j)) / 2 and p_ij = k_ij / sum_j k_ij, the term is the mean over
  batch^2 entries of p^T log((p^T + 1e-7) / (p^S + 1e-7)). As in the authors' code, an image is
  near itself too; the paper leaves it out. RepDistiller divides an embedding by its length plus
  1e-7, here by its length alone, so that its size says nothing. An embedding of 0 is as near to
  each image, itself included, as one at a right angle, k = 1/2, and has no gradient; RepDistiller's
  is no number there.
  """

  couples = True

  def term(self, lesson):
    """Scalar; see `kdih.distillation.method.FeatureMethod`."""
    student, teacher = (_probabilities(lesson.gather(e)) for e in features.embeddings(lesson))
    return (teacher * jnp.log((teacher + _EPSILON) / (student + _EPSILON))).mean()


def _probabilities(embeddings: jax.Array) -> jax.Array:
  """p, [batch, batch], of embeddings [batch, width]."""
  directions = features.unit(embeddings)
  # A cosine that is rounded to below -1 is none.
  near = jnp.maximum((1 + features.products(directions, directions)) / 2, 0)
  return near / near.sum(-1, keepdims=True)
