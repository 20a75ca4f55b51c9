"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, section 3.1)."""
from kdih.distillation import features
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Where in the image the features are large, at every tap.

  With Q(f) = mean_c f^2 over all positions, of length 1, the term is the sum over the taps of
  mean((Q(f_S) - Q(f_T))^2); the larger map is average-pooled to the size of the smaller. The
  paper's formula (2) has the length of the difference instead; its authors' code, and the usual
  weight, have this.
  """

  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    sized = [features.same_size(*pair) for pair in features.pairs(lesson)]
    return sum(((_attention(student) - _attention(teacher))**2).mean(-1)
               for student, teacher in sized)


def _attention(feature):
  """Q, [batch, H * W]."""
  return features.unit((feature * feature).mean(-1).reshape(len(feature), -1))
