"""VGG with batch norm and one linear layer (Simonyan & Zisserman, 2015, table 1, A B D E).

There are two traditions. `vgg11` is the DIH authors' (`VGG_Models.py`): five max-pools, so that a
32x32 image ends in one pixel. The others are RepDistiller's (`vgg.py`), to compare with its
published numbers: the fourth pool is only for images of more than 32 pixels, and the global mean
stands for the fifth. The initialisation is RepDistiller's; the DIH authors kept PyTorch's default.
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers


def _pool(x: jax.Array) -> jax.Array:
  # A single pixel is kept: small images pass through all layers.
  return nn.max_pool(x, (2, 2), (2, 2)) if min(x.shape[1:3]) > 1 else x


class VGG(nn.Module):
  """A chain of 3x3 convolutions, each with batch norm and ReLU.

  `layout` lists the layers in order: a convolution's channels, 'pool' (2x2), 'pool_large' (a pool
  if the image is larger than 32x32) or 'tap', which exposes the feature as `stage1`, `stage2` …
  The preactivation of a tap behind a pool is pooled too: max-pool and ReLU commute.
  """
  num_classes: int
  layout: Sequence[int | str]
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C]."""
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    large = min(images.shape[1:3]) > 32
    x = before = images
    convs = taps = 0
    for layer in self.layout:
      if layer == 'tap':
        taps += 1
        layers.tap(self, f'stage{taps}', x, before)
      elif isinstance(layer, int):
        convs += 1
        x = layers.conv(layer, use_bias=True, dtype=self.dtype, name=f'conv{convs}')(x)
        before = norm(name=f'norm{convs}')(x)
        x = nn.relu(before)
      elif layer == 'pool' or (layer == 'pool_large' and large):
        x, before = _pool(x), _pool(before)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01),
                    name='classifier')(layers.embedding(self, x))


def _repdistiller(*sizes: int) -> partial[VGG]:
  """Returns a VGG of five blocks of `sizes` convolutions, with taps before the pools 2 to 5.

  At 32x32: 16x16x128, 8x8x256, 4x4x512, 4x4x512.
  """
  one, two, three, four, five = sizes
  layout: tuple[int | str, ...] = (
      *[64] * one, 'pool', *[128] * two, 'tap', 'pool', *[256] * three, 'tap', 'pool',
      *[512] * four, 'tap', 'pool_large', *[512] * five, 'tap')
  return partial(VGG, layout=layout)


MODELS = {
    'vgg8': _repdistiller(1, 1, 1, 1, 1),
    # At 32x32: 16x16x64, 16x16x128, 8x8x256, 1x1x512. The third tap is inside its block.
    'vgg11': partial(VGG, layout=(
        64, 'pool', 'tap', 128, 'tap', 'pool', 256, 'tap', 256, 'pool', 512, 512, 'pool',
        512, 512, 'pool', 'tap')),
    'vgg13': _repdistiller(2, 2, 2, 2, 2),
    'vgg16': _repdistiller(2, 2, 3, 3, 3),
    'vgg19': _repdistiller(2, 2, 4, 4, 4),
}
