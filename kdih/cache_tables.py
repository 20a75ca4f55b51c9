"""How a cache of what teachers say is made: room, memory or disk, block by block of images."""
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from etils import epath

from kdih import data, errors, fingerprint, heard, heard_files, parallel
from kdih.experiment import Experiment
from kdih.progress import say

DTYPE = np.dtype(np.float16)
_SHARE = 0.9  # Of the memory that is free, what a table may take.


@dataclasses.dataclass(frozen=True)
class Order:
  """A table to be made.

  Attributes:
    experiment: whose training images it is about.
    rows: (frozen, images) to float rows [batch, width]; called inside a step.
    frozen: the variables that `rows` reads.
    shape: (images, slots, width).
    identity: what it comes from, for JSON.
  """

  experiment: Experiment
  rows: Callable[[Any, jax.Array], jax.Array]
  frozen: dict[str, Any]
  shape: tuple[int, int, int]
  identity: dict[str, Any]

  @property
  def place(self) -> str:
    """Where it is kept."""
    return self.experiment.config.compute.cache_place

  @property
  def folder(self) -> epath.Path:
    """Of its files, where that is the disk."""
    hears = fingerprint.of_json([self.identity['kind of rows'], self.shape[1]])
    return self.experiment.teachers.path / 'cache' / hears[:16]


def size(shape: tuple[int, int, int]) -> int:
  """Bytes of a table."""
  return shape[0] * shape[1] * shape[2] * DTYPE.itemsize


def require_room(place: str, needed: int, path: epath.Path) -> None:
  """Raises ConfigError unless `needed` bytes are free at the place."""
  free = _free(place, path)
  if needed > free * _SHARE:
    others = ' or '.join(other for other in ('device', 'host', 'disk') if other != place)
    raise errors.ConfigError(
        f'config.compute.cache_place: what the teachers say takes {_in_words(needed)}, and of the '
        f'{_in_words(free)} that are free on the {place} at most {_SHARE:.0%} may be taken; choose '
        f'{others}, or fewer views with config.compute.cache=views:N')


def _free(place: str, path: epath.Path) -> int:
  if place == 'disk':
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
  available = psutil.virtual_memory().available
  stats = [device.memory_stats() for device in jax.local_devices()]
  if place == 'host' or not all(stats):  # CPUs tell nothing, and their memory is the host's.
    return available
  free = min(s['bytes_limit'] - s['bytes_in_use'] for s in stats)
  return min(parallel.num_devices() * free, available)  # It passes through the host.


def described(shape: tuple[int, int, int], place: str, kind: str) -> str:
  """What a table of such a shape holds, and how much it takes."""
  images, slots, width = shape
  return (f'{images:,} images x {slots} views x {width:,} numbers, {_in_words(size(shape))} on the '
          f'{place}: {kind}')


def _in_words(count: int) -> str:
  return f'{count / 1e9:.2f} GB'


def make(order: Order, forget: Callable[[], None]) -> heard.NoTable:
  """The table; where there is no room, once more after `forget`. Raises ConfigError then."""
  images = order.shape[0]
  say(f'cache: {described(order.shape, order.place, order.identity["kind of rows"])}')
  subset, preprocess = order.experiment.train_subset, order.experiment.student_preprocess
  if order.place == 'disk':
    return heard.HostTable(_on_disk(order), subset, preprocess)
  try:
    require_room(order.place, size(order.shape), order.folder)
  except errors.ConfigError:
    forget()  # What other students hear can be made again.
    require_room(order.place, size(order.shape), order.folder)
  if order.place == 'host':
    return heard.HostTable(_in_memory(order, images), subset, preprocess)
  devices = parallel.num_devices()
  return heard.DeviceTable(_in_memory(order, -(-images // devices) * devices), subset, preprocess)


def _in_memory(order: Order, length: int) -> np.ndarray:
  """The rows, filled up with zeros to `length` images."""
  rows, done = np.zeros((length, *order.shape[1:]), DTYPE), 0
  for block in _blocks(order, 0, order.experiment.config.data.eval_global_batch_size):
    rows[done:done + len(block)] = block
    done += len(block)
  return rows


def _on_disk(order: Order) -> np.ndarray:
  """The rows, built where they are not there; one process builds, the others wait for it."""
  held = heard_files.lock(order.folder) if heard_files.writes() else None
  try:
    store = heard_files.Store(order.folder, order.identity, order.shape, DTYPE,
                              order.experiment.config.data.eval_global_batch_size)
    done = heard_files.first_only(store.done)
    if done < order.shape[0]:
      require_room('disk', size((order.shape[0] - done, *order.shape[1:])), order.folder)
    for block in _blocks(order, done, heard_files.first_only(store.block)):
      if heard_files.writes():
        store.add(block)
    parallel.wait_for_all('cache built')
    return store.rows()
  finally:
    if held:
      held.release()


def _blocks(order: Order, done: int, block: int) -> Iterator[np.ndarray]:
  """Rows [images, slots, width] of one block of images after the other, from image `done` on."""
  experiment = order.experiment
  loader = experiment.splits.loader('train')
  step = _make_step(order, loader.gather)
  frozen, devices = parallel.replicate(order.frozen), parallel.num_devices()
  subset, even = experiment.train_subset[done:], -(-block // devices) * devices
  batches = data.eval_batches(subset, block)
  feeds = loader.feeds(map(parallel.share, map(functools.partial(_filled, even), batches)))
  for start, feed in zip(range(0, len(subset), block), feeds, strict=True):
    shared = parallel.shard(feed)
    # One call a slot: within a loop of its own XLA computes convolutions slowly on a CPU.
    by_slot = [step(np.int32(slot), frozen, loader.resident, shared)
               for slot in range(order.shape[1])]
    rows = np.stack(parallel.to_host(by_slot), axis=1)[:min(block, len(subset) - start)]
    if not np.isfinite(rows).all():
      raise errors.TrainingError(
          'config.compute.cache: the teachers say what is not finite in float16; look at the '
          'teacher, or set it to none')
    yield rows
    if start // block % 10 == 0:
      say(f'cache: {done + start + len(rows):,} of {order.shape[0]:,} images')


def _filled(length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch of indices, filled up to a `length` that the devices can share evenly."""
  return {'index': np.resize(batch['index'], length)}


def _make_step(order: Order, gather: Callable) -> Callable:
  """(slot, frozen, resident, feed) to rows [batch, width] of a batch of images, of all devices."""
  preprocess = order.experiment.student_preprocess

  def step(slot, frozen, resident, feed):
    batch = gather(resident, feed)
    number = preprocess.number(batch['index'], jnp.full(batch['index'].shape, slot))
    rows = order.rows(frozen, preprocess.view(batch['image'], number))
    return parallel.gather(rows.astype(DTYPE))

  return parallel.pmap_step(step)
