"""The layers of all families, with the hyperparameters of the PyTorch reference models.

One thing differs from PyTorch: Flax keeps a running average of the biased batch variance,
PyTorch of the unbiased one. Over n values per channel they differ by the factor n / (n - 1).
"""
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.models.taps import EMBEDDING

# `conv` or `batch_norm` with a model's settings filled in.
ModuleFactory = Callable[..., Any]
Initializer = nn.initializers.Initializer

# Initialisations of a convolution's kernel: N(0, sqrt(2 / (k * k * features))), He et al. (2015) by
# fan-out; and PyTorch's default, uniform within 1 / sqrt(k * k * inputs / groups).
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
PYTORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


EPSILON = 1e-5  # Added to the variance in batch norms.


def conv(features: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1,
         use_bias: bool = False, dtype: Any = jnp.float32, kernel_init: Initializer = HE_FAN_OUT,
         name: str | None = None) -> nn.Conv:
  """Returns a square convolution: [batch, H, W, C] -> [batch, H / stride, W / stride, features].

  Each of the `groups` reads its own C / groups channels. It pads `kernel_size // 2` on all four
  sides, as the references do in PyTorch; with stride 2, Flax's 'SAME' pads only after the image.
  """
  return nn.Conv(features, (kernel_size, kernel_size), strides=stride, padding=kernel_size // 2,
                 feature_group_count=groups, use_bias=use_bias, dtype=dtype,
                 kernel_init=kernel_init, name=name)


def batch_norm(*, train: bool, dtype: Any = jnp.float32, axis_name: str | None = None,
               name: str | None = None) -> nn.BatchNorm:
  """Returns a batch norm with scale 1, bias 0, eps 1e-5 and PyTorch's momentum of 0.1.

  In training, its statistics are averaged over the devices of `axis_name`, unless it is None. The
  variance is the mean of (x - mean)^2, as exact as PyTorch's. The mean of x^2 less the squared mean
  would need one pass over x, but errs by a tenth of the variance if the mean is 1000 standard
  deviations, and by all of the variance if it is 3000.
  """
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=EPSILON, dtype=dtype,
                      axis_name=axis_name, use_fast_variance=False, name=name)


def dense(inputs: int, features: int, *, bias_init: Initializer | None = None,
          dtype: Any = jnp.float32, name: str | None = None) -> nn.Dense:
  """Returns a linear layer, [batch, inputs] -> [batch, features], initialised as in PyTorch.

  The kernel, and the bias unless `bias_init` is given, are uniform within ±1 / sqrt(inputs).
  """
  bound = 1 / math.sqrt(inputs)

  def symmetric(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(features, dtype=dtype, name=name, kernel_init=symmetric,
                  bias_init=bias_init or symmetric)


def average_pool(x: jax.Array) -> jax.Array:
  """Returns the mean over all positions, [batch, H, W, C] -> float32 [batch, C]."""
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def tap(module: nn.Module, name: str, feature: jax.Array,
        before: jax.Array | None = None) -> jax.Array:
  """Exposes `feature` as `intermediates[name]` of `module`, the array itself, and returns it.

  `before`, the array before the feature's last ReLU, becomes `preactivations[name]`.
  """
  _expose(module, 'intermediates', name, feature)
  # `init` would return preactivations among the variables, as it does all that is sown except
  # intermediates.
  if before is not None and not module.is_initializing():
    _expose(module, 'preactivations', name, before)
  return feature


def _expose(module: nn.Module, collection: str, name: str, array: jax.Array) -> None:
  module.sow(collection, name, array, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def embedding(module: nn.Module, x: jax.Array) -> jax.Array:
  """Exposes and returns the embedding, the mean over all positions: float32 [batch, C]."""
  return tap(module, EMBEDDING, average_pool(x))
