"""AB: transfer of activation boundaries (Heo et al., AAAI 2019, arXiv 1811.03233)."""
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from kdih.config.values import Number
from kdih.distillation import features, losses, method
from kdih.methods.fitnets import Regressor


class Method(method.Method):
  """Trains the student's neurons to fire where the teacher's do, then its logits by the labels.

  Preparation, with the preactivations s_i of the student and t_i of the teacher at the taps
  i = 1 .. n:

      L = 0.003 sum_i 2^(i - n) sum(where(t_i > 0, (margin - s_i)_+^2, (margin + s_i)_+^2))

  where the inner sum is over height, width and channels. Where the shapes of s_i and t_i differ, a
  connector (`kdih.methods.fitnets.Regressor`) maps s_i first. This loss reaches all of the student
  but its classifier. After the preparation,

      L = CE(z, y)

  as in the paper and in RepDistiller.

  Source: Heo, Lee, Yun and Choi, AAAI 2019, arXiv 1811.03233, section 3; the factors 0.003 and
  2^(i - n) are those of the authors' code.

  Attributes:
    margin: above 0; the paper has 1.
  """

  prepares = True

  margin: Annotated[float, Number(0, 1e6, open_low=True)]

  @nn.compact
  def prepare(self, lesson):
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
    return {'ce': losses.cross_entropy(lesson.student.logits, lesson.labels)}
