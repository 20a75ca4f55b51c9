"""MHKD: multi-head knowledge distillation (Wang et al., 2020, arXiv 2012.02911)."""
from typing import Any

import jax
from flax import linen as nn

from kdih.distillation import features as features_lib, losses, method, options
from kdih.models import layers


class Method(method.Method):
  """Trains heads on both models with the student; the teacher's heads teach those of the student.

      L = kd(z, t) + sum_i [CE(h^T_i, y) + beta kd(h^S_i, h^T_i)],
      kd(z, t) = (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z))

  over the taps i, with the logits h^S_i and h^T_i of the heads on student and teacher. No gradient
  flows through h^T_i in kd. Every tap has a head, including the deepest. The convolutions pad by 1,
  so that small maps do not vanish.

  Source: Wang, Lohit, Jones and Fu, 2020, arXiv 2012.02911.

  Attributes:
    alpha: weight of the teacher or of its head, in [0, 1].
    temperature: T.
    beta: weight of the student's heads, above 0.
    width: channels of the heads.
  """

  alpha: options.Alpha
  temperature: options.Temperature
  beta: options.PositiveWeight
  width: options.Width

  @nn.compact
  def __call__(self, lesson):
    labels = lesson.labels
    terms = self._kd(lesson.student.logits, lesson.teacher.logits, labels)
    for number, features in enumerate(features_lib.pairs(lesson), 1):
      student, teacher = (
          _Head(lesson.student.logits.shape[-1], self.width, self.context.axis_name,
                name=f'{side}{number}')(feature)
          for side, feature in zip(('student', 'teacher'), features, strict=True))
      heads = self._kd(student, jax.lax.stop_gradient(teacher), labels)
      terms['ce'] += losses.cross_entropy(teacher, labels) + self.beta * heads['ce']
      terms['kl'] += self.beta * heads['kl']
    return terms

  @nn.nowrap
  def _kd(self, student, teacher, labels):
    return losses.kd_terms(student, teacher, labels, self.alpha, self.temperature)


class _Head(nn.Module):
  """A head: two 3x3 convolutions with batch norm and ReLU, average pooling, two linear layers.

  Attributes:
    num_classes: number of logits.
    width: channels of the hidden layers.
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  num_classes: int
  width: int
  axis_name: Any

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = layers.conv(self.width)(x)
      x = nn.relu(layers.batch_norm(train=True, axis_name=self.axis_name)(x))
    x = nn.relu(layers.dense(self.width, self.width)(layers.average_pool(x)))
    return layers.dense(self.width, self.num_classes)(x)
