"""Transfer of activation boundaries (Heo et al., AAAI 2019, arXiv 1811.03233, section 3)."""
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from kdih.config.values import Number
from kdih.distillation import features, losses, method
from kdih.methods.fitnets import Regressor


class Method(method.Method):
  """First the student's neurons fire where the teacher's do, then it learns from the labels.

  With the preactivations s of the student, mapped by a connector where the shapes differ, and t
  of the teacher, the first loss is, over the taps i = 1 .. n,

      0.003 sum_i 2^(i - n) sum((s_i + margin)_+^2 where t_i <= 0, else (margin - s_i)_+^2)

  a sum over the map, and the factors those of the authors' code. It trains the student but its
  classifier. The second loss is CE(z, y) alone, as in the paper and in RepDistiller, which gives
  the first one no weight there. A connector is a convolution and batch norm, see
  `kdih.methods.fitnets.Regressor`.

  Attributes:
    margin: above 0; the paper has 1.
  """

  prepares = True

  margin: Annotated[float, Number(0, 1e6, open_low=True)]

  @nn.compact
  def prepare(self, lesson):
    """Returns 'boundary'; see `kdih.distillation.method.Method`."""
    pairs = features.preactivation_pairs(lesson)
    terms = []
    for number, (student, teacher) in enumerate(pairs, 1):
      if student.shape != teacher.shape:
        connector = Regressor(self.context.axis_name, name=f'connector{number}')
        student = connector(student, teacher.shape)
      missed = jnp.where(teacher > 0, self.margin - student, self.margin + student)
      terms.append(2.0**(number - len(pairs)) * (nn.relu(missed)**2).sum((1, 2, 3)))
    return {'boundary': 0.003 * sum(terms)}

  def __call__(self, lesson):
    """Returns 'ce'; see `kdih.distillation.method.Method`."""
    return {'ce': losses.cross_entropy(lesson.student.logits, lesson.labels)}
