"""Task-oriented feature distillation (Zhang et al., NeurIPS 2020, section 3)."""
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kdih.distillation import features as features_lib, losses, method, options
from kdih.distillation.lesson import Lesson
from kdih.models import layers


class Method(method.Method):
  """Auxiliary classifiers on both models; the student's learn features and answers of the other's.

  Tap i of S goes through S - i blocks of separable convolutions, each of which halves the map and
  has as many channels as the next tap, then through the mean over the map, g_i, to logits z_i. Of
  the deepest tap these are the model's own: what its classifier reads, and says. The loss is

      sum_i CE(z^S_i, y) + H(p_T(z^T_i), p_T(z^S_i)) + alpha |W_i g^S_i - g^T_i|
            + beta (|W_i W_i' - 1| + |W_i' W_i - 1|)

  with the cross-entropy H, learnt W_i, and norms over all of a matrix: the second is that of
  [global batch, width] and no mean. First the teacher's classifiers learn from the labels, then
  they are frozen. The authors train theirs with the teacher itself, which here stays as it is,
  and raise the temperature from 1 to 4 over their 250 epochs; here T is constant.

  Attributes:
    temperature: T.
    alpha: weight of the features, 0 or more.
    beta: weight of the W's orthogonality, 0 or more.
  """

  prepares = True
  couples = True

  temperature: options.Temperature
  alpha: options.Weight
  beta: options.Weight

  def setup(self):
    """Makes the auxiliary classifiers."""
    self.student = _Branches(self.context.axis_name)
    self.teacher = _Branches(self.context.axis_name)

  def prepare(self, lesson):
    """Returns 'ce', by which the teacher's auxiliary classifiers learn from the labels."""
    _, features = _sides(lesson)
    branches = self.teacher(features, lesson.teacher.logits.shape[-1], train=True)
    return {'ce': sum(losses.cross_entropy(logits, lesson.labels) for _, logits in branches)}

  @nn.compact
  def __call__(self, lesson):
    """Returns 'ce', 'soft', 'feature' and 'orthogonality'; see `kdih.distillation.method.Method`.
    """
    embeddings = features_lib.embeddings(lesson)
    features = _sides(lesson)
    classes = lesson.student.logits.shape[-1]
    learning = [*self.student(features[0], classes, train=True),
                (embeddings[0], lesson.student.logits)]
    taught_by = jax.lax.stop_gradient([*self.teacher(features[1], classes, train=False),
                                       (embeddings[1], lesson.teacher.logits)])
    ce, soft, feature, orthogonality = (jnp.zeros(()) for _ in range(4))
    for number, (student, teacher) in enumerate(zip(learning, taught_by, strict=True), 1):
      (g_student, z_student), (g_teacher, z_teacher) = student, teacher
      mapped, skew = _Link(g_teacher.shape[-1], name=f'link{number}')(g_student)
      ce += losses.cross_entropy(z_student, lesson.labels).mean()
      soft += losses.soft_cross_entropy(z_student, z_teacher, self.temperature).mean()
      feature += self.alpha * _norm(lesson.gather(mapped - g_teacher))
      orthogonality += self.beta * skew
    return {'ce': ce, 'soft': soft, 'feature': feature, 'orthogonality': orthogonality}


class _Branches(nn.Module):
  """(g_i, z_i) of all taps but the deepest.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, features, num_classes, train):
    widths = [feature.shape[-1] for feature in features]
    branches = []
    for number, x in enumerate(features[:-1], 1):
      for block, width in enumerate(widths[number:], 1):
        x = _Separable(width, self.axis_name, name=f'branch{number}_block{block}')(x, train)
      pooled = layers.average_pool(x)
      classifier = layers.dense(widths[-1], num_classes, name=f'branch{number}_classifier')
      branches.append((pooled, classifier(pooled)))
    return branches


class _Separable(nn.Module):
  """Twice a depthwise and a 1x1 convolution, BN and ReLU; the first halves the map.

  Attributes:
    features: channels that come out.
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  features: int
  axis_name: Any

  @nn.compact
  def __call__(self, x, train):
    for stride, features in ((2, x.shape[-1]), (1, self.features)):
      x = layers.conv(x.shape[-1], stride=stride, groups=x.shape[-1])(x)
      x = layers.conv(features, 1)(x)
      x = nn.relu(layers.batch_norm(train=train, axis_name=self.axis_name)(x))
    return x


class _Link(nn.Module):
  """(W g, |W W' - 1| + |W' W - 1|), of g [batch, width] to [batch, features].

  Attributes:
    features: width of W g.
  """

  features: int

  @nn.compact
  def __call__(self, pooled):
    width = pooled.shape[-1]
    kernel = self.param('kernel', layers.PYTORCH_DEFAULT, (width, self.features))
    skew = (_norm(kernel.T @ kernel - jnp.eye(self.features))
            + _norm(kernel @ kernel.T - jnp.eye(width)))
    return pooled @ kernel, skew


def _norm(matrix: jax.Array) -> jax.Array:
  return optax.safe_norm(matrix, 0.0)


def _sides(lesson: Lesson) -> tuple[list[jax.Array], list[jax.Array]]:
  """The features of student and teacher. Raises ValueError where a branch has no place."""
  student, teacher = zip(*features_lib.pairs(lesson), strict=True)
  if len(student) < 2:
    raise ValueError('the models have one tap each; auxiliary classifiers need two or more; choose '
                     'config.student.taps and config.student.teacher_taps')
  return list(student), list(teacher)
