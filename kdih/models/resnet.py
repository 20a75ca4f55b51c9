"""Residual networks (He et al., 2016, figures 2 and 5, table 1), post-activation.

For CIFAR there are three stages, depth 6n + 2 (section 4.2): `resnet8` to `resnet110`. Taps at
32x32: 32x32x16, 16x16x32, 8x8x64; the "x4" models are four times as wide, behind a stem twice as
wide (Tian et al., 2020, *Contrastive Representation Distillation*). Shortcuts are projections
(option B), as in RepDistiller's `resnet.py` and the DIH authors' `tiny_resnets.py`; He et al. pad
with zeros there (option A).

Of the networks of four stages `resnet18`, `resnet34` and `resnet50` have the stem for small images,
a 3x3 convolution; source: RepDistiller's `resnetv2.py`. The DIH authors' `massive_resnets.py` has
the same layers, but its convolutions keep PyTorch's default initialisation. `resnet…_imagenet`
have the stem for large images, as in torchvision's `resnet.py`.
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

  [batch, H, W, C] -> [batch, H / stride, W / stride, width]. The shortcut is a 1x1 convolution
  if the shape changes (option B), else the identity. `conv` and `norm` make a convolution and
  a batch norm.
  """
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the block's sum, before its last ReLU."""
    x = self.conv(self.width, stride=self.stride, name='conv1')(inputs)
    x = nn.relu(self.norm(name='norm1')(x))
    x = self.norm(name='norm2')(self.conv(self.width, name='conv2')(x))
    return x + self.shortcut(inputs, x.shape)

  def shortcut(self, inputs: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the inputs, projected to `shape` if theirs differs."""
    if inputs.shape == shape:
      return inputs
    x = self.conv(shape[-1], 1, stride=self.stride, name='projection')(inputs)
    return self.norm(name='projection_norm')(x)


class Bottleneck(BasicBlock):
  """As `BasicBlock`, but a 1x1, a 3x3 and a 1x1 convolution, the last one 4 times `width` wide.

  The 3x3 convolution has the stride, as in both sources; in He et al. it is the first.
  """

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the block's sum, before its last ReLU."""
    x = nn.relu(self.norm(name='norm1')(self.conv(self.width, 1, name='conv1')(inputs)))
    x = self.conv(self.width, stride=self.stride, name='conv2')(x)
    x = self.conv(4 * self.width, 1, name='conv3')(nn.relu(self.norm(name='norm2')(x)))
    x = self.norm(name='norm3')(x)
    return x + self.shortcut(inputs, x.shape)


class ResNet(nn.Module):
  """A residual network; every stage but the first halves the image.

  `stage{i}` taps the output of stage i, after its last ReLU; its preactivation is the last block's
  sum: [batch, H / 2**(i - 1), W / 2**(i - 1), stage_widths[i - 1]], with the ImageNet stem a
  quarter of that height and width, with `Bottleneck` 4 times the channels.
  """
  num_classes: int
  stage_sizes: Sequence[int]
  stage_widths: Sequence[int] = (64, 128, 256, 512)
  stem_width: int = 64
  imagenet_stem: bool = False
  block: Callable[..., Any] = BasicBlock
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C]."""
    conv = partial(layers.conv, dtype=self.dtype)
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    stem_size, stem_stride = (7, 2) if self.imagenet_stem else (3, 1)
    x = conv(self.stem_width, stem_size, stride=stem_stride, name='stem')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    if self.imagenet_stem:
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for i, (size, width) in enumerate(zip(self.stage_sizes, self.stage_widths, strict=True), 1):
      for j in range(1, size + 1):
        stride = 2 if i > 1 and j == 1 else 1
        before = self.block(width, stride, conv=conv, norm=norm, name=f'stage{i}_block{j}')(x)
        x = nn.relu(before)
      layers.tap(self, f'stage{i}', x, before)
    x = layers.embedding(self, x)
    return layers.dense(x.shape[-1], self.num_classes, name='classifier')(x)


def _cifar(depth: int) -> partial[ResNet]:
  return partial(ResNet, stage_sizes=((depth - 2) // 6,) * 3, stage_widths=(16, 32, 64),
                 stem_width=16)


_CIFAR = {f'resnet{depth}': _cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    f'resnet{depth}x4': partial(_cifar(depth), stage_widths=(64, 128, 256), stem_width=32)
    for depth in (8, 32)
}
_FOUR_STAGES = {
    'resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    'resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    'resnet50': partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
}
MODELS = _CIFAR | _FOUR_STAGES | {
    f'{name}_imagenet': partial(model, imagenet_stem=True) for name, model in _FOUR_STAGES.items()}
