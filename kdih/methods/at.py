"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""
from kdih.distillation import features
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Compares the attention maps of student and teacher: where in the image features are large.

      term = sum_i mean((Q(f^S_i) - Q(f^T_i))^2),   Q(f) = F / |F|,   F = mean_c f_c^2

  over the taps i, with F flattened to [H * W] and the mean over the positions. The larger of two
  maps is average-pooled to the size of the smaller.

  Source: Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, section 3.1. Equation (2) has the
  norm of the difference; the authors' code, for which the usual weight is meant, has this mean.

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  def term(self, lesson):
    sized = [features.same_size(*pair) for pair in features.pairs(lesson)]
    return sum(((_attention(student) - _attention(teacher))**2).mean(-1)
               for student, teacher in sized)


def _attention(feature):
  """Returns Q, [batch, H * W]."""
  return features.unit((feature * feature).mean(-1).reshape(len(feature), -1))
