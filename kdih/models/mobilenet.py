"""MobileNetV2 for small images (Sandler et al., 2018), `mobilenetv2` at half width.

Source: RepDistiller's `mobilenetv2.py`, `mobile_half`. Unlike table 2 of the paper, its second
group keeps the height and width, ReLU stands for ReLU6, and the first block has a 1x1 convolution
before the depthwise one too.
"""
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers

# For each group of blocks: whether it expands its channels, output channels, blocks, first stride.
_GROUPS = ((False, 16, 1, 1), (True, 24, 2, 1), (True, 32, 3, 2), (True, 64, 4, 2),
           (True, 96, 3, 1), (True, 160, 3, 2), (True, 320, 1, 1))
_TAPPED = (2, 3, 5, 7)  # Groups, counted from 1.


class InvertedResidual(nn.Module):
  """1x1 convolution to `hidden` channels, 3x3 depthwise, linear 1x1 to `width`.

  [batch, H, W, C] -> [batch, H / stride, W / stride, width], plus the input where its shape is the
  same. `conv` and `norm` make a convolution and a batch norm.
  """
  hidden: int
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the block's output; no ReLU follows it."""
    x = self.conv(self.hidden, 1, name='expansion')(inputs)
    x = nn.relu(self.norm(name='expansion_norm')(x))
    x = self.conv(self.hidden, stride=self.stride, groups=self.hidden, name='depthwise')(x)
    x = nn.relu(self.norm(name='depthwise_norm')(x))
    x = self.norm(name='projection_norm')(self.conv(self.width, 1, name='projection')(x))
    return x + inputs if x.shape == inputs.shape else x


class MobileNetV2(nn.Module):
  """A mobile network; `expansion` is the paper's t, `widening` multiplies all widths but the last.

  Taps are the outputs of groups 2, 3, 5 and 7; at 32x32 and half width 16x16x12, 8x8x16, 4x4x48,
  2x2x160. They are linear: no ReLU touches them, and each is its own preactivation.
  """
  num_classes: int
  expansion: int = 6
  widening: float = 0.5
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C]."""
    conv = partial(layers.conv, dtype=self.dtype)
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    x = conv(int(32 * self.widening), stride=2, name='stem')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    for i, (expands, channels, blocks, stride) in enumerate(_GROUPS, 1):
      for j in range(1, blocks + 1):
        hidden = x.shape[-1] * (self.expansion if expands else 1)
        x = InvertedResidual(hidden, int(channels * self.widening), stride if j == 1 else 1,
                             conv=conv, norm=norm, name=f'group{i}_block{j}')(x)
      if i in _TAPPED:
        layers.tap(self, f'stage{_TAPPED.index(i) + 1}', x, before=x)
    x = conv(int(1280 * max(1.0, self.widening)), 1, name='last')(x)
    x = layers.embedding(self, nn.relu(norm(name='last_norm')(x)))
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01),
                    name='classifier')(x)


MODELS = {'mobilenetv2': MobileNetV2}
