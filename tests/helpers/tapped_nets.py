"""Networks whose taps are sown in every way, or are submodules."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdih.models import taps

SHAPE, CLASSES = (4, 4, 3), 5
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)
STAGES = ('stage2', 'stage10', 'stage1')  # As they follow each other; stage10 is sown as a tuple.


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(2)(x))
    self.sow('intermediates', 'inner', x)
    return x


class Net(nn.Module):
  """Sows one tap by Flax's default, as a tuple, the others as arrays; has batch norm."""

  sows: bool = True

  def put(self, name, x):
    if self.sows:
      self.sow('intermediates', name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(6)(x)
    self.put('stage2', x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    if self.sows:
      self.sow('intermediates', 'stage10', x)
    x = x[:, ::2, ::2]
    self.put('stage1', x)
    return nn.Dense(CLASSES)(x.mean((1, 2)))


class Nested(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(CLASSES)(Block()(Block()(x)).mean((1, 2)))


@functools.cache
def variables(model):
  found = taps.abstract_variables(model, SHAPE)
  rng = np.random.default_rng(2)
  return jax.tree.map(
      lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype), found)


def features(model, *names):
  output, _ = taps.observe(model, variables(model), IMAGES, names)
  return output.logits, output.features
