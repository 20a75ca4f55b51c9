"""The devices: the one axis 'batch', and how arrays get on and off it."""
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = 'batch'


def num_devices() -> int:
  """Devices that share each global batch."""
  return jax.local_device_count()


def pmap_step(step: Callable, *, donate_state: bool = False) -> Callable:
  """Compiles `step(state, frozen, resident, feed)` over the axis 'batch'.

  The first three arguments are the same on every device and the feed is split along its leading
  axis (see `shard`). Everything returned must have been reduced over 'batch': it is taken to be
  the same on every device. With `donate_state` the buffers of `state` are reused for the result,
  and the argument is gone after the call.
  """
  return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, None, 0), out_axes=None,
                  donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
  """Puts every array of `tree` on every device."""
  sharding = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())
  return jax.device_put(tree, sharding)


def shard(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits the leading axis: [global batch, ...] to [devices, batch per device, ...]."""
  devices = num_devices()
  return {name: array.reshape(devices, -1, *array.shape[1:]) for name, array in feed.items()}


def gather(array: jax.Array) -> jax.Array:
  """Inside a step: the arrays of all devices, put together along their leading axis.

  Where every device computes the same loss from gathered arrays, the mean of the devices'
  gradients is the gradient of that loss.
  """
  return jax.lax.all_gather(array, AXIS, tiled=True)


def to_host(tree: Any) -> Any:
  """Copies every array of `tree` to numpy."""
  return jax.device_get(tree)
