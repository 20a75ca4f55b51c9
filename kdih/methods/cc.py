"""Correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802), as RepDistiller has it."""
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import features, options
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """Embeddings of student and teacher, each linear to `width`, come together, two by two images.

  With d_i = |W_S e^S_i + b_S - W_T e^T_i - b_T|, elementwise, the term is the mean of d_i . d_i+1
  over images that follow each other in the batch. Both maps are learnt. The paper compares the
  correlations of images under a Gaussian kernel instead; this is the term of RepDistiller, which
  has it from the paper's authors and to which its weight belongs.

  Attributes:
    width: of the embeddings that are compared.
  """

  couples = True

  width: options.Width

  @nn.compact
  def term(self, lesson):
    """Scalar; see `kdih.distillation.method.FeatureMethod`. 0 for a single image."""
    student, teacher = (
        layers.dense(embedding.shape[-1], self.width, name=side)(embedding)
        for side, embedding in zip(('student', 'teacher'), features.embeddings(lesson),
                                   strict=True))
    apart = lesson.gather(jnp.abs(student - teacher))
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)
