"""ShuffleNet V1 (Zhang et al., 2018) and V2 (Ma et al., 2018) for small images.

Source: RepDistiller's `ShuffleNetv1.py` (three groups) and `ShuffleNetv2.py` (size 1): the stem is
a 1x1 convolution, there is no max-pool, and V1 has a ReLU behind the depthwise convolution, unlike
in the paper. Their average over 4x4 pixels is here over all positions. Convolutions keep PyTorch's
default initialisation.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers

_STEM_WIDTH = 24


def shuffle(x: jax.Array, groups: int) -> jax.Array:
  """Interleaves the channels of the `groups`; the shape is kept."""
  split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
  return split.swapaxes(-1, -2).reshape(x.shape)


class GroupedBlock(nn.Module):
  """V1: 1x1 convolution, shuffle, 3x3 depthwise, 1x1 convolution (figure 2 b and c).

  [batch, H, W, C] -> [batch, H / stride, W / stride, width]. With stride 2 the averaged inputs are
  put behind the result, else they are added to it. `conv` and `norm` make a convolution and a batch
  norm. The channels of the stem are too few for groups: there the first convolution has one.
  """
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory
  groups: int = 3

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the block's output before its last ReLU."""
    width = self.width - (inputs.shape[-1] if self.stride == 2 else 0)
    groups = 1 if inputs.shape[-1] == _STEM_WIDTH else self.groups
    x = self.conv(width // 4, 1, groups=groups, name='conv1')(inputs)
    x = shuffle(nn.relu(self.norm(name='norm1')(x)), groups)
    x = self.conv(width // 4, stride=self.stride, groups=width // 4, name='depthwise')(x)
    x = nn.relu(self.norm(name='norm2')(x))
    x = self.norm(name='norm3')(self.conv(width, 1, groups=self.groups, name='conv3')(x))
    if self.stride == 1:
      return x + inputs
    pooled = nn.avg_pool(inputs, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return jnp.concatenate([x, pooled], axis=-1)


class SplitBlock(nn.Module):
  """V2: half of the channels pass, the other half are convolved; then a shuffle (figure 3 c and d).

  [batch, H, W, C] -> [batch, H / stride, W / stride, width]. With stride 2 both halves read all
  channels and are convolved. `conv` and `norm` make a convolution and a batch norm.
  """
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the output before the last ReLU, which does not change the half that passes."""
    if self.stride == 1:
      passed, x = jnp.split(inputs, 2, axis=-1)
    else:
      passed, x = self._depthwise(inputs, 'left_depthwise'), inputs
      passed = self._pointwise(passed, 'left_conv')
    x = nn.relu(self._pointwise(x, 'conv1'))
    x = self._pointwise(self._depthwise(x, 'depthwise'), 'conv2')
    return shuffle(jnp.concatenate([passed, x], axis=-1), 2)

  def _pointwise(self, x: jax.Array, name: str) -> jax.Array:
    return self.norm(name=f'{name}_norm')(self.conv(self.width // 2, 1, name=name)(x))

  def _depthwise(self, x: jax.Array, name: str) -> jax.Array:
    x = self.conv(x.shape[-1], stride=self.stride, groups=x.shape[-1], name=name)(x)
    return self.norm(name=f'{name}_norm')(x)


class ShuffleNet(nn.Module):
  """A stem, three stages that each halve the image, and a classifier.

  `stage{i}` taps the output of stage i after its last ReLU, [batch, H / 2**i, W / 2**i, width].
  Its preactivation has the tap's order of channels; RepDistiller's V2 has it before the shuffle.
  """
  num_classes: int
  stage_sizes: Sequence[int]
  stage_widths: Sequence[int]
  block: Callable[..., Any]
  last_width: int | None = None  # Width of a 1x1 convolution before the mean; None for none.
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C]."""
    conv = partial(layers.conv, dtype=self.dtype, kernel_init=layers.PYTORCH_DEFAULT)
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    x = nn.relu(norm(name='stem_norm')(conv(_STEM_WIDTH, 1, name='stem')(images)))
    for i, (size, width) in enumerate(zip(self.stage_sizes, self.stage_widths, strict=True), 1):
      for j in range(1, size + 1):
        before = self.block(width, 2 if j == 1 else 1, conv=conv, norm=norm,
                            name=f'stage{i}_block{j}')(x)
        x = nn.relu(before)
      layers.tap(self, f'stage{i}', x, before)
    if self.last_width:
      x = nn.relu(norm(name='last_norm')(conv(self.last_width, 1, name='last')(x)))
    x = layers.embedding(self, x)
    return layers.dense(x.shape[-1], self.num_classes, name='classifier')(x)


MODELS = {
    # At 32x32: 16x16x240, 8x8x480, 4x4x960.
    'shufflenetv1': partial(
        ShuffleNet, stage_sizes=(4, 8, 4), stage_widths=(240, 480, 960), block=GroupedBlock),
    # At 32x32: 16x16x116, 8x8x232, 4x4x464.
    'shufflenetv2': partial(
        ShuffleNet, stage_sizes=(4, 8, 4), stage_widths=(116, 232, 464), block=SplitBlock,
        last_width=1024),
}
