"""Vision transformers (Dosovitskiy et al., 2021) of DeiT's sizes (Touvron et al., 2021, table 1).

As timm's `deit_tiny_patch16_224`, but for small images: patches of 4x4 pixels. There is no
stochastic depth.
"""
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers
from kdih.models.taps import EMBEDDING

_SPREAD = nn.initializers.normal(0.02)


class Block(nn.Module):
  """Attention and an MLP, each behind a layer norm and beside a shortcut.

  Tokens [batch, tokens, width] -> the same. `norm` makes a layer norm.
  """
  num_heads: int
  mlp_ratio: int
  norm: layers.ModuleFactory
  dtype: Any

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Returns the block's sum."""
    width = tokens.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_SPREAD)
    attention = nn.MultiHeadDotProductAttention(
        self.num_heads, dtype=self.dtype, kernel_init=_SPREAD, name='attention')
    tokens += attention(self.norm(name='norm1')(tokens))
    x = dense(self.mlp_ratio * width, name='mlp1')(self.norm(name='norm2')(tokens))
    return tokens + dense(width, name='mlp2')(nn.gelu(x, approximate=False))


class VisionTransformer(nn.Module):
  """A class token and one token per patch, with learnt positions.

  `stage{i}` taps the patches' tokens after block i, as a map [batch, H / patch_size,
  W / patch_size, width]. There is no ReLU, so there are no preactivations. The embedding is the
  class token behind the final norm. Images must have the size that they had at the initialisation.
  """
  num_classes: int
  patch_size: int = 4
  width: int = 192
  depth: int = 12
  num_heads: int = 3
  mlp_ratio: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C].

    Raises:
      ValueError: height or width is not a multiple of `patch_size`.
    """
    del train  # Nothing differs in training.
    norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    patches = self._patches(images)
    tokens = self._tokens(patches.reshape(images.shape[0], -1, patches.shape[-1]))
    for i in range(1, self.depth + 1):
      tokens = Block(self.num_heads, self.mlp_ratio, norm, self.dtype, name=f'block{i}')(tokens)
      layers.tap(self, f'stage{i}', tokens[:, 1:].reshape(*patches.shape[:-1], self.width))
    x = norm(name='final_norm')(tokens[:, 0]).astype(jnp.float32)
    x = layers.tap(self, EMBEDDING, x)
    return nn.Dense(self.num_classes, kernel_init=_SPREAD, name='classifier')(x)

  def _patches(self, images: jax.Array) -> jax.Array:
    """Returns patches [batch, H / patch_size, W / patch_size, patch_size**2 * C] of images."""
    batch, height, width, channels = images.shape
    size = self.patch_size
    if height % size or width % size:
      raise ValueError(f'height {height} and width {width} are not both multiples of patch_size, '
                       f'{size}')
    grid = images.reshape(batch, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)

  def _tokens(self, patches: jax.Array) -> jax.Array:
    """Returns tokens [batch, 1 + patches, width] of patches [batch, patches, values]."""
    x = layers.dense(patches.shape[-1], self.width, dtype=self.dtype, name='patches')(patches)
    first = self.param('class_token', _SPREAD, (1, 1, self.width)).astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
    return x + self.param('positions', _SPREAD, (1, *x.shape[1:])).astype(x.dtype)


MODELS = {'vit_tiny': VisionTransformer}
