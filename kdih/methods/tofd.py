"""TOFD: task-oriented feature distillation (Zhang et al., NeurIPS 2020)."""
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from kdih.distillation import features as features_lib, losses, method, options
from kdih.distillation.lesson import Lesson
from kdih.models import layers


class Method(method.Method):
  """Trains auxiliary classifiers on the student to match those on the teacher, features and logits.

  Tap i of n has an auxiliary classifier on either model: n - i blocks of separable convolutions,
  each of which halves the map and has as many channels as the next tap, then average pooling to
  g_i, and a linear layer to the logits z_i. For the deepest tap g_n is the model's own embedding,
  and z_n are its logits.

  Preparation: the teacher's auxiliary classifiers learn from the labels, L = sum_i CE(z^T_i, y)
  over i < n. Then they are frozen, and

      L = sum_i [CE(z^S_i, y) + H(p_T(z^T_i), p_T(z^S_i)) + alpha |W_i g^S_i - g^T_i|
                 + beta (|W_i W_i' - 1| + |W_i' W_i - 1|)]

  with the cross-entropy H, trained matrices W_i, and Frobenius norms. The norm after alpha is over
  all images of the global batch, without a mean.

  Source: Zhang et al., NeurIPS 2020, section 3. The authors train the teacher's classifiers
  together with the teacher, and raise the temperature from 1 to 4 over 250 epochs; here the
  teacher keeps its values, and T is constant.

  Attributes:
    temperature: T.
    alpha: weight of the features, at least 0.
    beta: weight of the orthogonality of the W_i, at least 0.
  """

  prepares = True
  couples = True

  temperature: options.Temperature
  alpha: options.Weight
  beta: options.Weight

  def setup(self):
    """Creates the auxiliary classifiers."""
    self.student = _Classifiers(self.context.axis_name)
    self.teacher = _Classifiers(self.context.axis_name)

  def prepare(self, lesson):
    _, features = _features(lesson)
    outputs = self.teacher(features, lesson.teacher.logits.shape[-1], train=True)
    return {'ce': sum(losses.cross_entropy(logits, lesson.labels) for _, logits in outputs)}

  @nn.compact
  def __call__(self, lesson):
    embeddings = features_lib.embeddings(lesson)
    features = _features(lesson)
    classes = lesson.student.logits.shape[-1]
    students = [*self.student(features[0], classes, train=True),
                (embeddings[0], lesson.student.logits)]
    teachers = jax.lax.stop_gradient([*self.teacher(features[1], classes, train=False),
                                      (embeddings[1], lesson.teacher.logits)])
    ce, soft, feature, orthogonality = (jnp.zeros(()) for _ in range(4))
    for number, (student, teacher) in enumerate(zip(students, teachers, strict=True), 1):
      (g_student, z_student), (g_teacher, z_teacher) = student, teacher
      mapped, skew = _Link(g_teacher.shape[-1], name=f'link{number}')(g_student)
      ce += losses.cross_entropy(z_student, lesson.labels).mean()
      soft += losses.soft_cross_entropy(z_student, z_teacher, self.temperature).mean()
      feature += self.alpha * _norm(lesson.gather(mapped - g_teacher))
      orthogonality += self.beta * skew
    return {'ce': ce, 'soft': soft, 'feature': feature, 'orthogonality': orthogonality}


class _Classifiers(nn.Module):
  """The auxiliary classifiers of one model: computes [(g_i, z_i)] for all taps but the deepest.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, features, num_classes, train):
    widths = [feature.shape[-1] for feature in features]
    outputs = []
    for number, x in enumerate(features[:-1], 1):
      # Checkpoints store the submodules under these names.
      for block, width in enumerate(widths[number:], 1):
        x = _Separable(width, self.axis_name, name=f'branch{number}_block{block}')(x, train)
      pooled = layers.average_pool(x)
      classifier = layers.dense(widths[-1], num_classes, name=f'branch{number}_classifier')
      outputs.append((pooled, classifier(pooled)))
    return outputs


class _Separable(nn.Module):
  """Two separable convolutions, each with batch norm and ReLU; the first one halves the map.

  A separable convolution is a 3x3 depthwise convolution and a 1x1 convolution.

  Attributes:
    features: channels of the output.
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
  """Computes (W g, |W W' - 1| + |W' W - 1|), with g [batch, width] and W g [batch, features].

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


def _features(lesson: Lesson) -> tuple[list[jax.Array], list[jax.Array]]:
  """Returns the features of student and teacher.

  Raises:
    ValueError: there is only one tap, and therefore no place for an auxiliary classifier.
  """
  student, teacher = zip(*features_lib.pairs(lesson), strict=True)
  if len(student) < 2:
    raise ValueError('the models have one tap each; auxiliary classifiers need two or more; choose '
                     'config.student.taps and config.student.teacher_taps')
  return list(student), list(teacher)
