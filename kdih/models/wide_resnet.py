"""Wide residual networks `wrn_{depth}_{widening}` (Zagoruyko & Komodakis, 2016, table 1).

Source: RepDistiller's `wrn.py`. `wrn_28_2` is the DIH authors' and has biases in its convolutions
(their history, commit d23e650); their dropout of 0.3, their stride in a block's second
convolution and their shortcut from the block's raw input are not reproduced.
"""
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models import layers


class PreActivationBlock(nn.Module):
  """Norm and ReLU before each of two convolutions (He et al., 2016, *Identity Mappings*, fig. 4e).

  [batch, H, W, C] -> [batch, H / stride, W / stride, width]. Where the width changes, the shortcut
  is a 1x1 convolution of the activated input, else the input itself.
  """
  width: int
  stride: int
  conv: layers.ModuleFactory
  norm: layers.ModuleFactory

  def setup(self):
    """Creates the layers; `projection` has parameters only if it is used."""
    self.norm1 = self.norm()
    self.norm2 = self.norm()
    self.conv1 = self.conv(self.width, stride=self.stride)
    self.conv2 = self.conv(self.width)
    self.projection = self.conv(self.width, 1, stride=self.stride)

  def normalise(self, inputs: jax.Array) -> jax.Array:
    """Returns the input of the block's first ReLU: [batch, H, W, C]."""
    return self.norm1(inputs)

  def __call__(self, inputs: jax.Array, normalised: jax.Array) -> jax.Array:
    """Returns the block's sum, before any norm or ReLU; `normalised` are the normalised inputs."""
    activated = nn.relu(normalised)
    x = self.conv2(nn.relu(self.norm2(self.conv1(activated))))
    return x + (inputs if inputs.shape == x.shape else self.projection(activated))


class WideResNet(nn.Module):
  """A wide residual network of three stages, 16, 32 and 64 times `widening` channels wide.

  `stage{i}` taps the output of stage i, [batch, H / 2**(i - 1), W / 2**(i - 1), width], as
  RepDistiller does: the raw sum, because the norm and ReLU that follow belong to the next stage.
  Its preactivation is the output of that norm.
  """
  num_classes: int
  depth: int
  widening: int
  use_bias: bool = False
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns float32 logits [batch, num_classes] for images [batch, H, W, C]."""
    conv = partial(layers.conv, use_bias=self.use_bias, dtype=self.dtype)
    norm = partial(layers.batch_norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
    x = conv(16, name='stem')(images)
    for i, width in enumerate((16, 32, 64), 1):
      for j in range(1, (self.depth - 4) // 6 + 1):
        first = i > 1 and j == 1
        block = PreActivationBlock(width * self.widening, 2 if first else 1, conv=conv, norm=norm,
                                   name=f'stage{i}_block{j}')
        normalised = block.normalise(x)
        if first:
          layers.tap(self, f'stage{i - 1}', x, normalised)
        x = block(x, normalised)
    normalised = norm(name='final_norm')(x)
    layers.tap(self, 'stage3', x, normalised)
    x = layers.embedding(self, nn.relu(normalised))
    return layers.dense(x.shape[-1], self.num_classes, bias_init=nn.initializers.zeros,
                        name='classifier')(x)


MODELS = {
    'wrn_16_1': partial(WideResNet, depth=16, widening=1),
    'wrn_16_2': partial(WideResNet, depth=16, widening=2),
    'wrn_28_2': partial(WideResNet, depth=28, widening=2, use_bias=True),
    'wrn_40_1': partial(WideResNet, depth=40, widening=1),
    'wrn_40_2': partial(WideResNet, depth=40, widening=2),
}
