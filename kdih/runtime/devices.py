"""The devices: one axis, 'batch', and how arrays are placed on it and copied from it.

The devices may belong to several processes, all of which make the same calls in the same order.
"""
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import msgspec
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdih import errors
from kdih.runtime import processes

AXIS = 'batch'

# The memory maps of this process, one in a line, and how many a process may have, on Linux.
_MAPS = pathlib.Path('/proc/self/maps')
_MOST_MAPS = pathlib.Path('/proc/sys/vm/max_map_count')


def num_processes() -> int:
  """Returns the number of processes that run as one; see `kdih.runtime.processes`.

  Raises:
    ConfigError: JAX finds no devices.
  """
  return _started(jax.process_count)


def num_devices() -> int:
  """Returns the number of devices of all processes, which share each global batch.

  Raises:
    ConfigError: JAX finds no devices.
  """
  return _started(jax.device_count)


def _started(count: Callable[[], int]) -> int:
  """Returns what `count` returns; the first call looks for the devices and may find none."""
  try:
    return count()
  except (RuntimeError, AssertionError) as error:  # If a plugin is missing, JAX fails to assert.
    if processes.joined():  # Another process may have ended.
      raise
    platforms = errors.in_line(os.environ.get('JAX_PLATFORMS', ''))
    reason = errors.first_line(error) if str(error) else 'none of this platform'
    raise errors.ConfigError(
        f'JAX_PLATFORMS: is {platforms!r}, and JAX finds no devices ({reason}); correct '
        'it and XLA_FLAGS, or install what JAX needs for these devices') from error


def on_cpu() -> bool:
  """Returns whether the devices are CPUs, on which XLA is slow at convolutions in a loop."""
  return jax.default_backend() == 'cpu'


def forget_programs() -> None:
  """Forgets compiled programs if this process has a third of the memory maps that it may have.

  On a CPU a program takes several of them, and a phase some hundred programs. Where there are no
  more maps, XLA ends the process by SIGSEGV.
  """
  try:
    used, most = _MAPS.read_bytes().count(b'\n'), int(_MOST_MAPS.read_text())
  except OSError:  # Other systems have other limits.
    return
  if used > most // 3:
    jax.clear_caches()


def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
  """Returns what `jax.lax.scan` returns; unrolled on a CPU, or if there is one iteration.

  On a CPU XLA rewrites convolutions into their fast form only outside of loops, and a loop of one
  iteration is a loop, too.
  """
  length = len(jax.tree.leaves(xs)[0])
  if length > 1 and not on_cpu():
    return jax.lax.scan(body, carry, xs)
  results = []
  for i in range(length):
    carry, result = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    results.append(result)
  return carry, jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *results)


def pmap_step(
    step: Callable, *, donate_state: bool = False,
    resident_axes: dict[str, int | None] | None = None,
) -> Callable:
  """Compiles `step(state, frozen, resident, feed)` over the axis 'batch'.

  Args:
    step: the first three arguments are the same on every device, except for the resident arrays
      that `resident_axes` gives an axis; the feed has a leading axis of devices, see `shard`.
      All results must have been reduced over 'batch': one device's copy is returned.
    donate_state: reuse the buffers of `state` for the result; the argument is gone after the call.
    resident_axes: the axis of each resident array that differs between devices.
  """
  return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, resident_axes, 0), out_axes=None,
                  donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
  """Puts every array of `tree` on every device of this process."""
  return jax.device_put(tree, _sharding())


def distribute(feed: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Puts each part of a feed from `shard` on its device; returns before the copies are complete."""
  return jax.device_put(feed, _sharding(AXIS))


def _sharding(*axes: str) -> NamedSharding:
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def place_sharded(array: np.ndarray) -> jax.Array:
  """Puts an equal part of the rows on every device: [devices of this process, rows, ...]."""
  return distribute(shard(local_slice({'': array})))['']


def look_up(part: jax.Array, position: jax.Array, column: jax.Array) -> jax.Array:
  """Returns rows of an array that is sharded over the devices; to be called inside a step.

  Args:
    part: [rows / devices, columns, width], this device's part; see `place_sharded`.
    position: int32 [batch], the number of the row in the whole array.
    column: int32 [batch].

  Returns:
    float32 [batch, width].
  """
  if num_devices() == 1:
    return part[position, column].astype(np.float32)
  position, column = gather(position), gather(column)
  is_local = position // len(part) == jax.lax.axis_index(AXIS)
  rows = jax.numpy.where(is_local[:, None], part[position % len(part), column], 0)
  return jax.lax.psum_scatter(rows.astype(np.float32), AXIS, tiled=True)


def local_slice(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the rows of a global batch for this process: an equal part, by process number."""
  def rows(array: np.ndarray) -> np.ndarray:
    size = len(array) // num_processes()
    return array[jax.process_index() * size:][:size]

  return jax.tree.map(rows, batch)


def shard(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits the leading axis of a local batch: [batch, ...] to [devices, batch / devices, ...]."""
  devices = jax.local_device_count()
  return jax.tree.map(lambda array: array.reshape(devices, -1, *array.shape[1:]), feed)


def gather(array: jax.Array) -> jax.Array:
  """Returns the arrays of all devices, concatenated; to be called inside a step.

  If every device computes the same loss from gathered arrays, the mean of the devices' gradients
  is the gradient of that loss.
  """
  return jax.lax.all_gather(array, AXIS, tiled=True)


def mean(tree: Any) -> Any:
  """Returns means over the devices of floating-point leaves; to be called inside a step.

  Integer and boolean leaves are the same on all devices and are returned unchanged.
  """
  leaves, structure = jax.tree.flatten(tree)
  is_mean = [jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) for leaf in leaves]
  means = iter(jax.lax.pmean(
      [leaf for leaf, averaged in zip(leaves, is_mean, strict=True) if averaged], AXIS))
  return jax.tree.unflatten(structure, [
      next(means) if averaged else leaf for leaf, averaged in zip(leaves, is_mean, strict=True)])


def to_host(tree: Any) -> Any:
  """Copies every array of `tree` to numpy."""
  return jax.device_get(tree)


def all_processes(array: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, of equal length, concatenated by process number."""
  if num_processes() == 1:
    return array
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def from_first_process(content: Any) -> Any:
  """Returns, in every process, the JSON-able `content` of the first process."""
  if num_processes() == 1:
    return content
  text = np.frombuffer(msgspec.json.encode(content), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.resize(np.append(text, np.uint8(0)), size)
  return msgspec.json.decode(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def wait_for_all(where: str) -> None:
  """Returns once every process has called it with the same `where`."""
  multihost_utils.sync_global_devices(where)
