"""FT: factor transfer (Kim, Park and Kwak, NeurIPS 2018, arXiv 1802.04977)."""
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
  """Trains a translation of the student's deepest feature to match a paraphrase of the teacher's.

  Preparation: the paraphraser, an autoencoder with encoder E and decoder D, is trained to
  reconstruct the teacher's deepest feature,

      L = mean((D(E(f^T)) - f^T)^2)

  Then E is frozen, and a translator R is trained with the student:

      term = mean(|Q(R(f^S)) - Q(E(f^T))|),   Q(F) = G / |G|,   G = mean_c F_c^2

  with G flattened to [H * W]. The larger of the two factors is average-pooled to the size of the
  smaller. Student and teacher may have different numbers of taps.

  Source: Kim, Park and Kwak, NeurIPS 2018, arXiv 1802.04977, section 3. Q is RepDistiller's; in
  the paper it is all of F divided by its norm. The paraphraser has batch norms, as the translator
  has; RepDistiller's has none, and a smaller learning rate.

  Attributes:
    rate: channels of a factor divided by those of the teacher's feature, above 0; the paper's k.
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  prepares = True

  rate: Annotated[float, Number(0, 100, open_low=True)]

  def setup(self):
    """Creates the encoder, the decoder and the translator."""
    self.encoder, self.decoder, self.translator = (
        _Block(self.context.axis_name) for _ in range(3))

  def prepare(self, lesson):
    _, teacher = _deepest(lesson)
    width, channels = self._width(teacher), teacher.shape[-1]
    factor = self.encoder(teacher, (channels, width, width), train=True)
    rebuilt = self.decoder(factor, (width, channels, channels), train=True)
    return {'paraphrase': ((rebuilt - teacher)**2).mean((1, 2, 3))}

  def term(self, lesson):
    student, teacher = _deepest(lesson)
    width = self._width(teacher)
    paraphrase = jax.lax.stop_gradient(
        self.encoder(teacher, (teacher.shape[-1], width, width), train=False))
    translation = self.translator(student, (student.shape[-1], width, width), train=True)
    student, teacher = map(_normalised, features.same_size(translation, paraphrase))
    return jnp.abs(student - teacher).mean(-1)

  @nn.nowrap
  def _width(self, teacher):
    return max(int(teacher.shape[-1] * self.rate), 1)


class _Block(nn.Module):
  """Three layers of a 3x3 convolution, a batch norm and a leaky ReLU.

  The decoder is one too: a transposed convolution with stride 1 is a convolution with a mirrored
  kernel.

  Attributes:
    axis_name: see `kdih.models.layers.batch_norm`.
  """

  axis_name: Any

  @nn.compact
  def __call__(self, x: jax.Array, widths: tuple[int, ...], train: bool) -> jax.Array:
    """Returns the output, [batch, H, W, widths[-1]], for x [batch, H, W, C]."""
    for width in widths:
      x = layers.conv(width, kernel_init=layers.PYTORCH_DEFAULT)(x)
      x = layers.batch_norm(train=train, axis_name=self.axis_name)(x)
      x = nn.leaky_relu(x, 0.1)
    return x


def _deepest(lesson: Lesson) -> tuple[jax.Array, jax.Array]:
  """Returns the deepest features of student and teacher.

  Raises:
    ValueError: one of them has no taps, or its deepest feature is not a map.
  """
  def cut(output: Any) -> Any:
    return dataclasses.replace(output, features=dict(list(output.features.items())[-1:]))

  return features.pairs(dataclasses.replace(
      lesson, student=cut(lesson.student), teacher=cut(lesson.teacher)))[0]


def _normalised(factor: jax.Array) -> jax.Array:
  """Returns Q, [batch, H * W]."""
  return features.unit((factor**2).mean(-1).reshape(len(factor), -1))
