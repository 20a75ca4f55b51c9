"""CC: correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802), as in RepDistiller."""
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import features, options
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """Compares embeddings that are mapped to a common width, over pairs of images.

      term = mean_i d_i . d_(i+1),   d_i = |W_S e^S_i + b_S - W_T e^T_i - b_T|

  over consecutive images i of the batch, with the elementwise absolute value. W_S, b_S, W_T and
  b_T are trained. The term of a batch of one image is 0.

  Source: RepDistiller's term, which its authors have from those of the paper, Peng et al., ICCV
  2019, arXiv 1904.01802. The paper itself compares the correlations of images under a Gaussian
  kernel.

  Attributes:
    width: width of the mapped embeddings.
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  couples = True

  width: options.Width

  @nn.compact
  def term(self, lesson):
    student, teacher = (
        layers.dense(embedding.shape[-1], self.width, name=side)(embedding)
        for side, embedding in zip(('student', 'teacher'), features.embeddings(lesson),
                                   strict=True))
    apart = lesson.gather(jnp.abs(student - teacher))
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)
