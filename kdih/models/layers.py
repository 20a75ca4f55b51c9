"""The pieces that every family is built from, with the numbers that PyTorch models have.

One thing differs from PyTorch: Flax keeps a running average of the biased batch variance,
PyTorch of the unbiased one. Over n values per channel they differ by the factor n / (n - 1).
"""
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# `conv` or `batch_norm` with a model's settings filled in.
ModuleFactory = Callable[..., Any]
Initializer = nn.initializers.Initializer


def conv(features: int, kernel_size: int = 3, *, stride: int = 1, use_bias: bool = False,
         dtype: Any = jnp.float32, name: str | None = None) -> nn.Conv:
  """A square convolution: [batch, H, W, C] -> [batch, H / stride, W / stride, features].

  It pads `kernel_size // 2` on all four sides, as the references do in PyTorch; with stride 2,
  Flax's 'SAME' pads only after the image. Weights are N(0, sqrt(2 / (k * k * features))), the
  initialisation of He et al. (2015) by fan-out.
  """
  return nn.Conv(features, (kernel_size, kernel_size), strides=stride, padding=kernel_size // 2,
                 use_bias=use_bias, dtype=dtype, name=name,
                 kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'))


def batch_norm(*, train: bool, dtype: Any = jnp.float32, axis_name: str | None = None,
               name: str | None = None) -> nn.BatchNorm:
  """Batch normalisation, shape kept; scale 1, bias 0, eps 1e-5, PyTorch's momentum of 0.1.

  When training, its statistics are averaged over the devices of `axis_name`, unless None.
  """
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype,
                      axis_name=axis_name, name=name)


def dense(inputs: int, features: int, *, bias_init: Initializer | None = None,
          dtype: Any = jnp.float32, name: str | None = None) -> nn.Dense:
  """A linear layer, [batch, inputs] -> [batch, features], initialised as PyTorch's `Linear`.

  Weights, and the bias unless `bias_init` says otherwise, are uniform within ±1 / sqrt(inputs).
  """
  bound = 1 / math.sqrt(inputs)

  def symmetric(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(features, dtype=dtype, name=name, kernel_init=symmetric,
                  bias_init=bias_init or symmetric)


def average_pool(x: jax.Array) -> jax.Array:
  """The mean over whatever map remains, [batch, H, W, C] -> float32 [batch, C]."""
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def tap(module: nn.Module, name: str, feature: jax.Array) -> jax.Array:
  """Exposes `feature` as `intermediates[name]` of `module`, the array itself, and returns it."""
  module.sow('intermediates', name, feature, init_fn=lambda: None, reduce_fn=lambda _, new: new)
  return feature
