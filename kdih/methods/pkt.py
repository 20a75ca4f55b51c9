"""PKT: probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837)."""
import jax
import jax.numpy as jnp

from kdih.distillation import features
from kdih.distillation.method import FeatureMethod

_EPSILON = 1e-7


class Method(FeatureMethod):
  """Matches the probabilities that images of the batch are neighbours, by their embeddings.

      term = mean_ij p^T_ij log((p^T_ij + 1e-7) / (p^S_ij + 1e-7)),
      p_ij = k_ij / sum_j k_ij,   k_ij = (1 + cos(e_i, e_j)) / 2

  over all pairs of images i and j of the global batch.

  Source: Passalis and Tefas, ECCV 2018, arXiv 1803.10837, section 3. As in the authors' code, the
  pairs include i = j, which the paper leaves out. RepDistiller adds 1e-7 to the norm in the cosine;
  here it is not added, and an embedding of 0 has the cosine 0 with every image and no gradient
  (RepDistiller's gradient is NaN there).

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  couples = True

  def term(self, lesson):
    student, teacher = (_probabilities(lesson.gather(e)) for e in features.embeddings(lesson))
    return (teacher * jnp.log((teacher + _EPSILON) / (student + _EPSILON))).mean()


def _probabilities(embeddings: jax.Array) -> jax.Array:
  """Returns p, [batch, batch], for embeddings [batch, width]."""
  directions = features.unit(embeddings)
  # Rounding can make a cosine smaller than -1.
  near = jnp.maximum((1 + features.products(directions, directions)) / 2, 0)
  return near / near.sum(-1, keepdims=True)
