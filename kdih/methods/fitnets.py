"""FitNets: hints from an intermediate layer (Romero et al., ICLR 2015, arXiv 1412.6550)."""
from typing import Annotated, Any

import jax
from flax import linen as nn

from kdih.config.values import Choice, Whole
from kdih.distillation import features as features_lib, losses, options
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """Trains the student's feature at one tap to match the teacher's, through a regressor r.

      hint = mean((relu(r(f^S)) - f^T)^2)

  With two phases, as in the paper, the hint is the preparation, which trains r and the student up
  to that tap; then the student learns by KD,

      L = (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z))

  With one phase, as in RepDistiller,

      L = cross_entropy CE(z, y) + weight hint

  Each form reads its own options. The regressor, followed by a ReLU, is RepDistiller's; it is used
  for equal shapes too.

  Source: Romero et al., ICLR 2015, arXiv 1412.6550, section 2, equation (3).

  Attributes:
    phases: 'two' or 'one'.
    hint: number of the tap, from 1.
    alpha: weight of the teacher in KD, in [0, 1]; read with two phases.
    temperature: T; read with two phases.
    cross_entropy: weight of the labels, at least 0; read with one phase.
    weight: weight of the hint, above 0; read with one phase.
  """

  phases: Annotated[str, Choice(('two', 'one'))]
  hint: Annotated[int, Whole(1, 1000)]
  alpha: options.Alpha
  temperature: options.Temperature

  @property
  def prepares(self):
    return self.phases == 'two'

  @nn.compact
  def term(self, lesson):
    pairs = features_lib.pairs(lesson)
    if self.hint > len(pairs):
      raise ValueError(f'hint is {self.hint}, and there are {len(pairs)} taps')
    student, teacher = pairs[self.hint - 1]
    mapped = nn.relu(Regressor(self.context.axis_name, name='regressor')(student, teacher.shape))
    return ((mapped - teacher)**2).mean((1, 2, 3))

  def prepare(self, lesson):
    return {'feature': self.term(lesson)}

  def __call__(self, lesson):
    if not self.prepares:
      return super().__call__(lesson)
    return losses.kd_terms(lesson.student.logits, lesson.teacher.logits, lesson.labels,
                           self.alpha, self.temperature)


class Regressor(nn.Module):
  """A convolution and a batch norm that map the student's feature to the shape of the teacher's.

  A map twice as large as the teacher's gets a 3x3 convolution with stride 2, one half as large a
  4x4 transposed convolution with stride 2, and any larger one a convolution without padding whose
  kernel is just large enough, 1x1 for maps of the same size. This is RepDistiller's `ConvReg`
  without the bias, which the batch norm would cancel.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, student: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the mapped feature, of the shape `shape`.

    Args:
      student: [batch, H, W, C].
      shape: shape of the teacher's feature.

    Raises:
      ValueError: the student's map is smaller than the teacher's and not half as large.
    """
    size, goal, features = student.shape[1:3], shape[1:3], shape[-1]
    conv: nn.Module
    if size == (2 * goal[0], 2 * goal[1]):
      conv = layers.conv(features, stride=2, kernel_init=layers.PYTORCH_DEFAULT, name='conv')
    elif goal == (2 * size[0], 2 * size[1]):
      conv = nn.ConvTranspose(features, (4, 4), strides=(2, 2), use_bias=False,
                              kernel_init=layers.PYTORCH_DEFAULT, name='conv')
    elif size[0] < goal[0] or size[1] < goal[1]:
      raise ValueError(
          f'no regressor leads from a map of {size[0]}x{size[1]} to one of {goal[0]}x{goal[1]}; '
          'the student\'s has to be half as large, or as large or larger')
    else:
      kernel_size = (1 + size[0] - goal[0], 1 + size[1] - goal[1])
      conv = nn.Conv(features, kernel_size, padding='VALID', use_bias=False,
                     kernel_init=layers.PYTORCH_DEFAULT, name='conv')
    norm = layers.batch_norm(train=True, axis_name=self.axis_name, name='norm')
    return norm(conv(student))
