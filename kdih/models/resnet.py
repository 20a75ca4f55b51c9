"""Residual networks of basic blocks (He et al., 2016, figure 2 and table 1), post-activation.

`MODELS` holds those of four stages, with the stem for small images: 3x3, stride 1, no max-pool.
Source: RepDistiller's `resnetv2.py`. The DIH authors' `massive_resnets.py` has the same layers, but
its convolutions keep PyTorch's default initialisation.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut.

  [batch, H, W, C] -> [batch, H / stride, W / stride, width]. The shortcut is a
  1x1 convolution where the shape changes (option B), else the identity. `conv` and `norm` make a
  convolution and a batch norm.
  """
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the block's output, after its last ReLU."""
    x = self.conv(self.width, stride=self.stride, name='conv1')(inputs)
    x = nn.relu(self.norm(name='norm1')(x))
    x = self.norm(name='norm2')(self.conv(self.width, name='conv2')(x))
    shortcut = inputs
    if shortcut.shape != x.shape:
      shortcut = self.conv(self.width, 1, stride=self.stride, name='projection')(inputs)
      shortcut = self.norm(name='projection_norm')(shortcut)
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """A residual network; every stage but the first halves the image.

  `stage{i}` taps the output of stage i, after its last ReLU:
  [batch, H / 2**(i - 1), W / 2**(i - 1), stage_widths[i - 1]].
  """
  num_classes: int
  stage_sizes: Sequence[int]
  stage_widths: Sequence[int] = (64, 128, 256, 512)
  stem_width: int = 64
  block: Callable[..., Any] = BasicBlock
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Images [batch, H, W, C] -> float32 logits [batch, num_classes]."""
    conv = partial(layers.conv, dtype=self.dtype)
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    x = nn.relu(norm(name='stem_norm')(conv(self.stem_width, name='stem')(images)))
    for i, (size, width) in enumerate(zip(self.stage_sizes, self.stage_widths, strict=True), 1):
      for j in range(1, size + 1):
        stride = 2 if i > 1 and j == 1 else 1
        x = self.block(width, stride, conv=conv, norm=norm, name=f'stage{i}_block{j}')(x)
      layers.tap(self, f'stage{i}', x)
    x = layers.average_pool(x)
    return layers.dense(x.shape[-1], self.num_classes, name='classifier')(x)


MODELS = {
    'resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    'resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3)),
}
