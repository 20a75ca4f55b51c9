"""Costs of a model at inference: size, FLOPs and time."""
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from kdih.models import taps
from kdih.runtime import files


def measure(
    model: nn.Module,
    variables: Any,
    image_shape: tuple[int, ...],
    *,
    batch_size: int = 128,
    repeats: int = 20,
) -> dict[str, Any]:
  """Measures the forward pass of `model` in evaluation mode, on the first device.

  Args:
    model: a module with `__call__(images, train)`.
    variables: the model's variables, see `taps.initial`.
    image_shape: height, width, channels.
    batch_size: images per call for the throughput.
    repeats: calls of which the median is taken, after one to warm up.

  Returns:
    `parameters`; `flops` of one image, a multiply-add counted as two and padding not at all (None
    where JAX_PLATFORMS excludes the CPU); `latency_ms` of a call with one image;
    `images_per_second` in calls with `batch_size` images.
  """
  forward = jax.jit(_forward(model))
  return {
      'parameters': count_parameters(variables['params']),
      'flops': flops(forward, variables, np.zeros((1, *image_shape), np.float32)),
      'latency_ms': 1000 * _seconds(forward, variables, (1, *image_shape), repeats),
      'images_per_second':
          batch_size / _seconds(forward, variables, (batch_size, *image_shape), repeats),
  }


def forward_flops(model: nn.Module, variables: Any, image_shape: tuple[int, ...]) -> int | None:
  """Returns the FLOPs of a forward pass of one image, by tracing; see `flops`."""
  return flops(jax.jit(_forward(model)), variables, np.zeros((1, *image_shape), np.float32))


def _forward(model: nn.Module) -> Callable:
  """Returns the function from (variables, images) to logits, in evaluation mode."""
  def forward(variables, images):
    return taps.logits_of(model.apply(variables, images, train=False))

  return forward


def flops(function: Any, *arguments: Any) -> int | None:
  """Returns the FLOPs of a jitted function; a multiply-add counts as two, padding as none.

  Returns None if JAX_PLATFORMS excludes the CPU: other platforms can only analyse compiled
  functions. The arguments may be shapes.
  """
  try:
    cpu = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
  with jax.default_device(cpu):
    return int(function.lower(*shapes).cost_analysis().get('flops', 0))


def _seconds(
    forward: Callable, variables: Any, images_shape: tuple[int, ...], repeats: int
) -> float:
  """Returns the median wall time of a call on images of `images_shape`, in seconds."""
  inputs = jax.device_put((variables, jnp.zeros(images_shape)), jax.local_devices()[0])
  jax.block_until_ready(forward(*inputs))
  times = []
  for _ in range(repeats):
    begun = time.perf_counter()
    jax.block_until_ready(forward(*inputs))
    times.append(time.perf_counter() - begun)
  return statistics.median(times)


def bytes_on_disk(path: epath.PathLike) -> int:
  """Returns the sum of the sizes of all files in the folder `path` and its subfolders."""
  return sum(bytes_on_disk(file) if file.is_dir() else files.size(file)
             for file in epath.Path(path).iterdir())


def count_parameters(params: Any) -> int:
  """Returns the number of numbers in a tree of parameters, which may be shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
