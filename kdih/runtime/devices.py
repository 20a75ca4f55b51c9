"""The devices: the one axis 'batch', and how arrays get on and off it.

The devices may belong to several processes, all of which make the same calls in the same order.
"""
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = 'batch'


def num_processes() -> int:
  """Processes that run as one; see `kdih.runtime.processes`."""
  return jax.process_count()


def num_devices() -> int:
  """Devices that share each global batch, those of all processes."""
  return jax.device_count()


def on_cpu() -> bool:
  """Whether the devices are CPUs, where XLA runs a convolution in a loop many times slower."""
  return jax.default_backend() == 'cpu'


def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
  """As `jax.lax.scan`; of a single turn, and on a CPU, as so many turns one behind the other.

  XLA rewrites convolutions into the form that is quick on a CPU outside of loops alone, and a loop
  of one turn is a loop to it.
  """
  turns = len(jax.tree.leaves(xs)[0])
  if turns > 1 and not on_cpu():
    return jax.lax.scan(body, carry, xs)
  found = []
  for turn in range(turns):
    carry, result = body(carry, jax.tree.map(lambda x, turn=turn: x[turn], xs))
    found.append(result)
  return carry, jax.tree.map(lambda *results: jax.numpy.stack(results), *found)


def pmap_step(
    step: Callable, *, donate_state: bool = False,
    resident_axes: dict[str, int | None] | None = None,
) -> Callable:
  """Compiles `step(state, frozen, resident, feed)` over the axis 'batch'.

  The first three arguments are the same on every device, but for the resident arrays that
  `resident_axes` gives an axis, and the feed is split along its leading axis (see `shard`).
  Everything returned must have been reduced over 'batch': it is taken to be the same on every
  device. With `donate_state` the buffers of `state` are reused for the result, and the argument is
  gone after the call.
  """
  return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, resident_axes, 0), out_axes=None,
                  donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
  """Puts every array of `tree` on every device of this process."""
  return jax.device_put(tree, _sharding())


def distribute(feed: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Puts each of the parts that `shard` made on its device; returns before they are there."""
  return jax.device_put(feed, _sharding(AXIS))


def _sharding(*axes: str) -> NamedSharding:
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def split(array: np.ndarray) -> jax.Array:
  """Gives every device an equal part, by its number: [devices of this process, part, ...]."""
  return distribute(shard(share({'': array})))['']


def look_up(part: jax.Array, position: jax.Array, column: jax.Array) -> jax.Array:
  """Inside a step: rows of an array that is split over the devices, float32 [batch, width].

  Args:
    part: [rows / devices, columns, width], this device's part; see `split`.
    position: int32 [batch], the row's place in the whole array.
    column: int32 [batch].
  """
  if num_devices() == 1:
    return part[position, column].astype(np.float32)
  position, column = gather(position), gather(column)
  mine = position // len(part) == jax.lax.axis_index(AXIS)
  rows = jax.numpy.where(mine[:, None], part[position % len(part), column], 0)
  return jax.lax.psum_scatter(rows.astype(np.float32), AXIS, tiled=True)


def share(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The rows of a global batch that this process works on: an equal part, by process number."""
  def mine(array: np.ndarray) -> np.ndarray:
    size = len(array) // num_processes()
    return array[jax.process_index() * size:][:size]

  return {name: mine(array) for name, array in batch.items()}


def shard(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits the leading axis: [batch of this process, ...] to [its devices, batch of each, ...]."""
  devices = jax.local_device_count()
  return {name: array.reshape(devices, -1, *array.shape[1:]) for name, array in feed.items()}


def gather(array: jax.Array) -> jax.Array:
  """Inside a step: the arrays of all devices, put together along their leading axis.

  Where every device computes the same loss from gathered arrays, the mean of the devices'
  gradients is the gradient of that loss.
  """
  return jax.lax.all_gather(array, AXIS, tiled=True)


def mean(tree: Any) -> Any:
  """Inside a step: means over the devices of what is no whole number, which all devices share."""
  leaves, structure = jax.tree.flatten(tree)
  is_mean = [jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) for leaf in leaves]
  means = iter(jax.lax.pmean(
      [leaf for leaf, averaged in zip(leaves, is_mean, strict=True) if averaged], AXIS))
  return jax.tree.unflatten(structure, [
      next(means) if averaged else leaf for leaf, averaged in zip(leaves, is_mean, strict=True)])


def to_host(tree: Any) -> Any:
  """Copies every array of `tree` to numpy."""
  return jax.device_get(tree)


def put_together(array: np.ndarray) -> np.ndarray:
  """The arrays of all processes, equally long, one behind the other by process number."""
  if num_processes() == 1:
    return array
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def of_first(content: Any) -> Any:
  """What the first process has, as JSON keeps it; in the others their own does not count."""
  if num_processes() == 1:
    return content
  text = np.frombuffer(json.dumps(content).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.resize(np.append(text, np.uint8(0)), size)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def wait_for_all(where: str) -> None:
  """Returns once every process has come here: files of the first are there for the others."""
  multihost_utils.sync_global_devices(where)
