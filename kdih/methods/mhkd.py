"""Multi-head knowledge distillation (Wang, Lohit, Jones and Fu, 2020, arXiv 2012.02911)."""
from typing import Any

import jax
from flax import linen as nn

from kdih.distillation import features as features_lib, losses, method, options
from kdih.models import layers


class Method(method.Method):
  """Convolutional heads on both models, trained with the student; each teaches its counterpart.

      kd(z, t) + sum_i [CE(h^T_i, y) + beta kd(h^S_i, h^T_i)],
      kd(z, t) = (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z))

  where h_i are the logits of the heads on the i-th taps, and h^T_i is a constant in the last kd.
  Every tap has a head, the deepest too. The convolutions pad by 1, for the sake of small maps.

  Attributes:
    alpha: weight of whoever teaches, in [0, 1].
    temperature: T.
    beta: weight of the student's heads, above 0.
    width: of the heads.
  """

  alpha: options.Alpha
  temperature: options.Temperature
  beta: options.PositiveWeight
  width: options.Width

  @nn.compact
  def __call__(self, lesson):
    """Returns 'ce' and 'kl' of student and heads; see `kdih.distillation.method.Method`."""
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
  """Twice conv 3x3, BN and ReLU; the mean over the map; twice linear, with a ReLU between.

  Attributes:
    num_classes: logits.
    width: of everything before.
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
