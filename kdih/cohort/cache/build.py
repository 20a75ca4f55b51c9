"""Construction of a cache of teacher signals, in memory or on disk, block by block of images."""
import contextlib
import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from etils import epath

from kdih import errors
from kdih.cohort.cache import lookup, rows as rows_lib, store
from kdih.data import sampling
from kdih.data.augment import Preprocess
from kdih.data.loaders import Loader
from kdih.distillation.signal import TeacherSignal
from kdih.runtime import devices, digests, files, processes
from kdih.training.task import Signals

logger = logging.getLogger(__name__)

DTYPE = np.dtype(np.float16)
_USABLE = 0.9  # The fraction of the free memory that a table may take.


@dataclasses.dataclass(frozen=True)
class Table:
  """The description of a table.

  Attributes:
    images: the number of training images.
    slots: the number of views of each.
    like: the shapes of the signal of a batch.
    identity: what the rows are computed from, for JSON.
  """

  images: int
  slots: int
  like: TeacherSignal
  identity: dict[str, Any]

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """Returns the numbers of images, of slots, and of numbers in a row."""
    return self.images, self.slots, rows_lib.width(self.like)

  @property
  def size(self) -> int:
    """Returns the size of the table in bytes."""
    return size(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRequest:
  """Tables to be made together, with one forward pass of the teachers for all tables.

  Attributes:
    teach: (frozen, images) to the signal of each table; called inside a step.
    frozen: the variables that `teach` reads.
    tables: the tables to make, which differ in their signal alone.
    place: where to keep them, one of `choices.CACHE_PLACES`.
    folder: tables on the disk are in its folder `cache`.
    loader: returns the loader of the train split, which it may have to make.
    subset: int32 [images], the training images' numbers in the split, sorted.
    preprocess: makes the views.
    block: the number of images that are computed, and written, at once.
  """

  teach: Callable[[Any, jax.Array], tuple[TeacherSignal, ...]]
  frozen: dict[str, Any]
  tables: tuple[Table, ...]
  place: str
  folder: epath.Path
  loader: Callable[[], Loader]
  subset: np.ndarray
  preprocess: Preprocess
  block: int

  @property
  def size(self) -> int:
    """Returns the size of all tables in bytes."""
    return sum(table.size for table in self.tables)

  def only(self, numbers: Sequence[int]) -> 'BuildRequest':
    """Returns the request for some of the tables."""
    def teach(frozen, images):
      signals = self.teach(frozen, images)
      return tuple(signals[number] for number in numbers)

    return dataclasses.replace(
        self, teach=teach, tables=tuple(self.tables[number] for number in numbers))

  def table_folder(self, table: Table) -> epath.Path:
    """Returns the folder of a table's files, if they are kept on the disk."""
    kind = digests.of_json([table.identity['kind of rows'], table.shape[1]])
    return self.folder / 'cache' / kind[:16]


def size(shape: tuple[int, int, int]) -> int:
  """Returns the size of a table in bytes."""
  return shape[0] * shape[1] * shape[2] * DTYPE.itemsize


def require_room(place: str, needed: int, path: epath.Path) -> None:
  """Raises ConfigError unless there is room for `needed` bytes at the place."""
  if has_room(place, needed, path):
    return
  others = ' or '.join(other for other in ('device', 'host', 'disk') if other != place)
  raise errors.ConfigError(
      f'config.compute.cache_place: the cached outputs take {_in_words(needed)}, more than '
      f'{_USABLE:.0%} of the {_in_words(_free(place, path))} that are free on the {place}; choose '
      f'{others}, or fewer views with config.compute.cache=views:N')


def has_room(place: str, needed: int, path: epath.Path) -> bool:
  """Returns whether there is room for `needed` bytes at the place."""
  return needed <= _free(place, path) * _USABLE


def _free(place: str, path: epath.Path) -> int:
  if place == 'disk':
    return shutil.disk_usage(files.existing_part(path)).free
  available = psutil.virtual_memory().available
  stats = [device.memory_stats() for device in jax.local_devices()]
  if place == 'host' or not all(stats):  # CPUs have no statistics; their memory is the host's.
    return available
  free = min(s['bytes_limit'] - s['bytes_in_use'] for s in stats)
  return min(devices.num_devices() * free, available)  # A table is built in the memory of the host.


def described(shape: tuple[int, int, int], place: str, kind: str) -> str:
  """Returns a line that describes a table: its shape, size, place and kind of rows."""
  images, slots, width = shape
  return (f'{images:,} images x {slots} views x {width:,} numbers, {_in_words(size(shape))} on the '
          f'{place}: {kind}')


def _in_words(count: int) -> str:
  return f'{count / 1e9:.2f} GB'


def make(request: BuildRequest, forget: Callable[[], None]) -> list[Signals]:
  """Makes the tables; only the first one if there is no room for all, or if another one fails.

  Args:
    request: the tables to make.
    forget: drops the tables that are kept in this process.

  Raises:
    ConfigError: there is no room for the first table, or a table on the disk is damaged or of
      another teacher.
    TrainingError: the teacher signal of the first table is not finite.
  """
  if request.place != 'disk':
    request = _with_room(request, forget)
  for table in request.tables:
    logger.info(f'cache: {described(table.shape, request.place, table.identity["kind of rows"])}')
  kind = lookup.DeviceTable if request.place == 'device' else lookup.HostTable
  try:
    made = _on_disk(request) if request.place == 'disk' else _in_memory(request)
  except errors.TrainingError:
    if len(request.tables) == 1:
      raise
    return make(request.only([0]), forget)
  return [kind(rows, table.like, request.subset, request.preprocess)
          for rows, table in zip(made, request.tables, strict=True)]


def _with_room(request: BuildRequest, forget: Callable[[], None]) -> BuildRequest:
  """Returns the request, or the part for which there is room in memory."""
  place, path = request.place, request.folder
  if not has_room(place, request.size, path):
    forget()  # The tables of other students can be made again.
  if has_room(place, request.size, path):
    return request
  require_room(place, request.tables[0].size, path)
  return request.only([0])


def _in_memory(request: BuildRequest) -> list[np.ndarray]:
  """Builds the rows of each table, padded with zeros to a multiple of the number of devices."""
  parts = devices.num_devices() if request.place == 'device' else 1
  length = -(-request.tables[0].shape[0] // parts) * parts
  made = [np.zeros((length, *table.shape[1:]), DTYPE) for table in request.tables]
  done = 0
  for blocks in _blocks(request, 0, request.block):
    for rows, block in zip(made, blocks, strict=True):
      rows[done:done + len(block)] = block
    done += len(blocks[0])
  return made


def _on_disk(request: BuildRequest) -> list[np.ndarray]:
  """Returns the rows of each table, after building what is missing on the disk.

  One process builds, the others wait for it.
  """
  folders = [request.table_folder(table) for table in request.tables]
  with contextlib.ExitStack() as stack:
    for folder in sorted(folders) if processes.is_first() else ():
      stack.enter_context(store.locked(folder))
    stores = [store.Store(folder, table.identity, table.shape, DTYPE, request.block)
              for folder, table in zip(folders, request.tables, strict=True)]
    # Tables that resume at the same image are built together.
    begun: dict[tuple[int, int], list[int]] = {}
    for number, opened in enumerate(stores):
      at = (int(devices.from_first_process(opened.done)),
            int(devices.from_first_process(opened.block)))
      begun.setdefault(at, []).append(number)
    for (done, block), numbers in begun.items():
      if done < request.tables[0].shape[0]:
        _build(request.only(numbers), done, block, [stores[number] for number in numbers])
    devices.wait_for_all('cache built')
    return [opened.rows() for opened in stores]


def _build(request: BuildRequest, done: int, block: int, stores: Sequence[store.Store]) -> None:
  """Adds the images from number `done` on to stores, which hold those before it."""
  images, *_ = request.tables[0].shape
  require_room('disk', request.size * (images - done) // images, stores[0].folder)
  for blocks in _blocks(request, done, block):
    if processes.is_first():
      for opened, rows in zip(stores, blocks, strict=True):
        opened.add(rows)


def _blocks(request: BuildRequest, done: int, block: int) -> Iterator[list[np.ndarray]]:
  """Yields rows [images, slots, width] of each table by blocks of images, from `done` on."""
  loader, preprocess = request.loader(), request.preprocess

  def rows_of(slot, frozen, resident, feed):
    """Returns rows [batch, width] of each table, for the images of all devices."""
    batch = loader.gather(resident, feed)
    number = preprocess.number(batch['index'], jnp.full(batch['index'].shape, slot))
    signals = request.teach(frozen, preprocess.view(batch['image'], number))
    return tuple(devices.gather(rows_lib.flatten(signal).astype(DTYPE)) for signal in signals)

  step = devices.pmap_step(rows_of)
  frozen = devices.replicate(request.frozen)
  subset = request.subset[done:]
  even = -(-block // devices.num_devices()) * devices.num_devices()
  batches = ({'index': np.resize(batch['index'], even)}  # A multiple of the number of devices.
             for batch in sampling.eval_batches(subset, block))
  feeds = loader.feeds(map(devices.local_slice, batches))
  for start, feed in zip(range(0, len(subset), block), feeds, strict=True):
    shared = devices.shard(feed)
    # One call for each slot: in a compiled loop, convolutions are slow on a CPU.
    by_slot = [step(np.int32(slot), frozen, loader.resident, shared)
               for slot in range(request.tables[0].shape[1])]
    count = min(block, len(subset) - start)
    blocks = [np.stack(rows, axis=1)[:count]
              for rows in zip(*devices.to_host(by_slot), strict=True)]
    if not all(np.isfinite(rows).all() for rows in blocks):
      raise errors.TrainingError(
          'config.compute.cache: the teacher signal is not finite in float16; check the teacher, '
          'or set config.compute.cache=none')
    yield blocks
    if start // block % 10 == 0:
      logger.info(f'cache: {done + start + count:,} of {done + len(subset):,} images')
