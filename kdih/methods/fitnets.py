"""FitNets: hints from a layer in the middle (Romero et al., 2015, arXiv 1412.6550, section 2)."""
from typing import Annotated, Any

import jax
from flax import linen as nn

from kdih.config.values import Choice, Whole
from kdih.distillation import features as features_lib, losses, options
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """The student's feature at one tap, mapped by a regressor r, imitates the teacher's there.

      hint = mean((r(f_S) - f_T)^2)

  In two phases, the paper's, the hint trains the student up to that tap, with r; then KD trains
  the student alone: (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z)). In one phase,
  RepDistiller's, the loss is cross_entropy CE(z, y) + weight hint. The other phase's options are
  not read. The regressor is RepDistiller's, and there where the shapes are equal too.

  Attributes:
    phases: 'two' or 'one'.
    hint: number of the tap, from 1.
    alpha: weight of the teacher in KD, in [0, 1].
    temperature: T.
  """

  phases: Annotated[str, Choice(('two', 'one'))]
  hint: Annotated[int, Whole(1, 1000)]
  alpha: options.Alpha
  temperature: options.Temperature

  @property
  def prepares(self):
    """See `kdih.distillation.method.Method`."""
    return self.phases == 'two'

  @nn.compact
  def term(self, lesson):
    """The hint, [batch]; see `kdih.distillation.method.FeatureMethod`."""
    pairs = features_lib.pairs(lesson)
    if self.hint > len(pairs):
      raise ValueError(f'hint is {self.hint}, and there are {len(pairs)} taps')
    student, teacher = pairs[self.hint - 1]
    mapped = nn.relu(Regressor(self.context.axis_name, name='regressor')(student, teacher.shape))
    return ((mapped - teacher)**2).mean((1, 2, 3))

  def prepare(self, lesson):
    """Returns 'feature', the hint; see `kdih.distillation.method.Method`."""
    return {'feature': self.term(lesson)}

  def __call__(self, lesson):
    """Returns 'ce', and 'feature' or 'kl'; see `kdih.distillation.method.Method`."""
    if not self.prepares:
      return super().__call__(lesson)
    return losses.kd_terms(lesson.student.logits, lesson.teacher.logits, lesson.labels,
                           self.alpha, self.temperature)


class Regressor(nn.Module):
  """A convolution and batch norm, from the student's feature to the shape of the teacher's.

  A map twice as large as the teacher's is convolved 3x3 with stride 2, one half as large 4x4
  transposed, any other by what is too much: to a map of the same size, 1x1. RepDistiller's
  `ConvReg`, less the bias, which batch norm takes away again.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, student: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[batch, H, W, C] to `shape`. Raises ValueError where no convolution leads there."""
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
