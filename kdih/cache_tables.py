"""How a cache of what teachers say is made: room, memory or disk, block by block of images."""
import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
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
class Table:
  """A table that is wanted.

  Attributes:
    shape: (images, slots, width).
    identity: what it comes from, for JSON.
  """

  shape: tuple[int, int, int]
  identity: dict[str, Any]

  @property
  def size(self) -> int:
    """In bytes."""
    return size(self.shape)


@dataclasses.dataclass(frozen=True)
class Order:
  """Tables to be made, of which the teachers are asked once for all.

  Attributes:
    experiment: whose training images they are about.
    rows: (frozen, images) to float rows [batch, width] of each table; called inside a step.
    frozen: the variables that `rows` reads.
    tables: which; they differ in their width alone.
  """

  experiment: Experiment
  rows: Callable[[Any, jax.Array], tuple[jax.Array, ...]]
  frozen: dict[str, Any]
  tables: tuple[Table, ...]

  @property
  def place(self) -> str:
    """Where they are kept."""
    return self.experiment.config.compute.cache_place

  @property
  def size(self) -> int:
    """In bytes, of all tables."""
    return sum(table.size for table in self.tables)

  def only(self, numbers: Sequence[int]) -> 'Order':
    """The order of some of its tables."""
    def rows(frozen, images):
      every = self.rows(frozen, images)
      return tuple(every[number] for number in numbers)

    return dataclasses.replace(
        self, rows=rows, tables=tuple(self.tables[number] for number in numbers))

  def folder(self, table: Table) -> epath.Path:
    """Of a table's files, where they are kept on the disk."""
    hears = fingerprint.of_json([table.identity['kind of rows'], table.shape[1]])
    return self.experiment.teachers.path / 'cache' / hears[:16]


def size(shape: tuple[int, int, int]) -> int:
  """Bytes of a table."""
  return shape[0] * shape[1] * shape[2] * DTYPE.itemsize


def require_room(place: str, needed: int, path: epath.Path) -> None:
  """Raises ConfigError unless `needed` bytes are free at the place."""
  if has_room(place, needed, path):
    return
  others = ' or '.join(other for other in ('device', 'host', 'disk') if other != place)
  raise errors.ConfigError(
      f'config.compute.cache_place: what the teachers say takes {_in_words(needed)}, and of the '
      f'{_in_words(_free(place, path))} that are free on the {place} at most {_SHARE:.0%} may be '
      f'taken; choose {others}, or fewer views with config.compute.cache=views:N')


def has_room(place: str, needed: int, path: epath.Path) -> bool:
  """Whether `needed` bytes are free at the place."""
  return needed <= _free(place, path) * _SHARE


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


def make(order: Order, forget: Callable[[], None]) -> list[heard.NoTable]:
  """The tables; the first alone where there is no room for all, or one of the others fails.

  Args:
    order: what to make.
    forget: drops tables that are kept in this process.

  Raises:
    ConfigError: there is no room for the first one, or one on the disk does not serve.
    TrainingError: what the teachers say for the first one is not finite.
  """
  if order.place != 'disk':
    order = _with_room(order, forget)
  for table in order.tables:
    say(f'cache: {described(table.shape, order.place, table.identity["kind of rows"])}')
  subset, preprocess = order.experiment.train_subset, order.experiment.student_preprocess
  kind = heard.DeviceTable if order.place == 'device' else heard.HostTable
  try:
    made = _on_disk(order) if order.place == 'disk' else _in_memory(order)
  except errors.TrainingError:
    if len(order.tables) == 1:
      raise
    return make(order.only([0]), forget)
  return [kind(rows, subset, preprocess) for rows in made]


def _with_room(order: Order, forget: Callable[[], None]) -> Order:
  """What of the order there is room for in memory."""
  place, path = order.place, order.experiment.teachers.path
  if not has_room(place, order.size, path):
    forget()  # What other students hear can be made again.
  if has_room(place, order.size, path):
    return order
  require_room(place, order.tables[0].size, path)
  return order.only([0])


def _in_memory(order: Order) -> list[np.ndarray]:
  """The rows of each table, filled up with zeros so that devices can share the images evenly."""
  share = parallel.num_devices() if order.place == 'device' else 1
  length, done = -(-order.tables[0].shape[0] // share) * share, 0
  made = [np.zeros((length, *table.shape[1:]), DTYPE) for table in order.tables]
  for blocks in _blocks(order, 0, order.experiment.config.data.eval_global_batch_size):
    for rows, block in zip(made, blocks, strict=True):
      rows[done:done + len(block)] = block
    done += len(blocks[0])
  return made


def _on_disk(order: Order) -> list[np.ndarray]:
  """The rows of each table, built where they are not there.

  One process builds, the others wait for it.
  """
  folders = [order.folder(table) for table in order.tables]
  with contextlib.ExitStack() as stack:
    for folder in sorted(folders) if heard_files.writes() else ():
      stack.callback(heard_files.lock(folder).release)
    block = order.experiment.config.data.eval_global_batch_size
    stores = [heard_files.Store(folder, table.identity, table.shape, DTYPE, block)
              for folder, table in zip(folders, order.tables, strict=True)]
    begun: dict[tuple[int, int], list[int]] = {}  # Those that go on alike are built together.
    for number, store in enumerate(stores):
      at = heard_files.first_only(store.done), heard_files.first_only(store.block)
      begun.setdefault(at, []).append(number)
    for (done, block), numbers in begun.items():
      if done < order.tables[0].shape[0]:
        _build(order.only(numbers), done, block, [stores[number] for number in numbers])
    parallel.wait_for_all('cache built')
    return [store.rows() for store in stores]


def _build(order: Order, done: int, block: int, stores: Sequence[heard_files.Store]) -> None:
  """Adds to stores that hold so many images what they lack."""
  images, *_ = order.tables[0].shape
  require_room('disk', order.size * (images - done) // images, stores[0].folder)
  for blocks in _blocks(order, done, block):
    if heard_files.writes():
      for store, rows in zip(stores, blocks, strict=True):
        store.add(rows)


def _blocks(order: Order, done: int, block: int) -> Iterator[list[np.ndarray]]:
  """Rows [images, slots, width] of each table, of one block of images after the other.

  The first image is `done`.
  """
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
               for slot in range(order.tables[0].shape[1])]
    count = min(block, len(subset) - start)
    blocks = [np.stack(rows, axis=1)[:count]
              for rows in zip(*parallel.to_host(by_slot), strict=True)]
    if not all(np.isfinite(rows).all() for rows in blocks):
      raise errors.TrainingError(
          'config.compute.cache: the teachers say what is not finite in float16; look at the '
          'teacher, or set it to none')
    yield blocks
    if start // block % 10 == 0:
      say(f'cache: {done + start + count:,} of {done + len(subset):,} images')


def _filled(length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch of indices, filled up to a `length` that the devices can share evenly."""
  return {'index': np.resize(batch['index'], length)}


def _make_step(order: Order, gather: Callable) -> Callable:
  """(slot, frozen, resident, feed) to rows [batch, width] of each table, of all devices' images."""
  preprocess = order.experiment.student_preprocess

  def step(slot, frozen, resident, feed):
    batch = gather(resident, feed)
    number = preprocess.number(batch['index'], jnp.full(batch['index'].shape, slot))
    rows = order.rows(frozen, preprocess.view(batch['image'], number))
    return tuple(parallel.gather(table.astype(DTYPE)) for table in rows)

  return parallel.pmap_step(step)
