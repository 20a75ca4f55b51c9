"""Models that compile in a second, as a user's own module would define them."""
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class TinyNet(nn.Module):
  """Two convolutions with batch norm, each a tap."""
  num_classes: int
  width: int = 4
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, train: bool):
    x = images
    for stage in (1, 2):
      x = nn.Conv(self.width * stage, (3, 3), strides=2, dtype=self.dtype)(x)
      x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, dtype=self.dtype,
                       momentum=0.9)(x)
      self.sow('preactivations', f'stage{stage}', x)
      x = nn.relu(x)
      self.sow('intermediates', f'stage{stage}', x)
    x = x.mean(axis=(1, 2))
    self.sow('intermediates', 'embedding', x)
    return nn.Dense(self.num_classes)(x)


class NoTaps(nn.Module):
  """A linear classifier: no taps, no batch norm."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train: bool):
    del train
    return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


class Diverging(nn.Module):
  """Its logits are infinite from the first step on."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train: bool):
    del train
    x = nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))
    self.sow('intermediates', 'stage1', x)
    return jnp.exp(x + 1000)


class Enormous(nn.Module):
  """To be trained, it asks for more memory than any machine has."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train: bool):
    x = images.reshape(images.shape[0], -1)
    self.sow('intermediates', 'stage1', x)
    logits = nn.Dense(self.num_classes)(x)
    if train:
      logits += jnp.abs(jnp.fft.fft(jnp.broadcast_to(logits.mean(), (2**20, 2**25)))).max()
    return logits
