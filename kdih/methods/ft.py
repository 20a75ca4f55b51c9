"""Factor transfer (Kim et al., NeurIPS 2018, arXiv 1802.04977, section 3)."""
import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.config.values import Number
from kdih.distillation import features
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import FeatureMethod
from kdih.models import layers


class Method(FeatureMethod):
  """A translator of the student's last feature imitates a paraphrase of the teacher's.

  First the paraphraser, an autoencoder, learns to reconstruct the teacher's last feature, by the
  mean squared error. Then it is frozen, and with the factors F that paraphraser and translator
  make of the last features the term is

      mean(|Q(F_S) - Q(F_T)|),   Q(F) = mean_c F^2, flattened, of length 1

  as in RepDistiller; in the paper, Q(F) is all of F, of length 1. The larger factor is
  average-pooled to the size of the smaller. The paraphraser has batch norm, as the translator
  has; RepDistiller's has none, and a smaller learning rate instead. Student and teacher may have
  any number of taps.

  Attributes:
    rate: channels of a factor over those of the teacher's feature, above 0; the paper's k.
  """

  prepares = True

  rate: Annotated[float, Number(0, 100, open_low=True)]

  def setup(self):
    """Makes paraphraser (an encoder and a decoder) and translator."""
    self.encoder, self.decoder, self.translator = (
        _Block(self.context.axis_name) for _ in range(3))

  def prepare(self, lesson):
    """Returns 'paraphrase', the error; see `kdih.distillation.method.Method`."""
    _, teacher = _deepest(lesson)
    width, channels = self._width(teacher), teacher.shape[-1]
    factor = self.encoder(teacher, (channels, width, width), train=True)
    rebuilt = self.decoder(factor, (width, channels, channels), train=True)
    return {'paraphrase': ((rebuilt - teacher)**2).mean((1, 2, 3))}

  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    student, teacher = _deepest(lesson)
    width = self._width(teacher)
    taught = jax.lax.stop_gradient(
        self.encoder(teacher, (teacher.shape[-1], width, width), train=False))
    learnt = self.translator(student, (student.shape[-1], width, width), train=True)
    ours, theirs = map(_normalised, features.same_size(learnt, taught))
    return jnp.abs(ours - theirs).mean(-1)

  @nn.nowrap
  def _width(self, teacher):
    return max(int(teacher.shape[-1] * self.rate), 1)


class _Block(nn.Module):
  """Three times a 3x3 convolution, batch norm and a leaky ReLU.

  It serves as a decoder too: of stride 1, a transposed convolution is one with a mirrored kernel.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, x: jax.Array, widths: tuple[int, ...], train: bool) -> jax.Array:
    """[batch, H, W, C] to [batch, H, W, widths[-1]]."""
    for width in widths:
      x = layers.conv(width, kernel_init=layers.PYTORCH_DEFAULT)(x)
      x = layers.batch_norm(train=train, axis_name=self.axis_name)(x)
      x = nn.leaky_relu(x, 0.1)
    return x


def _deepest(lesson: Lesson) -> tuple[jax.Array, jax.Array]:
  """The last features of student and teacher; raises ValueError unless they are maps."""
  def end(output: Any) -> Any:
    return dataclasses.replace(output, features=dict(list(output.features.items())[-1:]))

  ends = dataclasses.replace(lesson, student=end(lesson.student), teacher=end(lesson.teacher))
  return features.pairs(ends)[0]


def _normalised(factor: jax.Array) -> jax.Array:
  """Q: [batch, H, W, C] to [batch, H * W]."""
  return features.unit((factor**2).mean(-1).reshape(len(factor), -1))
