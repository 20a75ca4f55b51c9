"""How a cache of teacher signals is made: room, memory or disk, block by block of images."""
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
from kdih.runtime import devices, digests, processes
from kdih.training.task import Signals

logger = logging.getLogger(__name__)

DTYPE = np.dtype(np.float16)
_SHARE = 0.9  # Of the memory that is free, what a table may take.


@dataclasses.dataclass(frozen=True)
class Table:
  """A table that is wanted.

  Attributes:
    images: that are trained with.
    slots: views of each.
    like: the shapes of the signal of a batch.
    identity: what it comes from, for JSON.
  """

  images: int
  slots: int
  like: TeacherSignal
  identity: dict[str, Any]

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """Images, slots, numbers in a row."""
    return self.images, self.slots, rows_lib.width(self.like)

  @property
  def size(self) -> int:
    """In bytes."""
    return size(self.shape)


@dataclasses.dataclass(frozen=True)
class BuildRequest:
  """Tables to be made, of which the teachers are asked once for all.

  Attributes:
    teach: (frozen, images) to the signal of each table; called inside a step.
    frozen: the variables that `teach` reads.
    tables: which; they differ in their signal alone.
    place: where they are kept, one of `choices.CACHE_PLACES`.
    folder: on the disk, their files lie in its folder `cache`.
    loader: gives that of the train split, which may have to read it first.
    subset: int32 [images], those that are trained with, their numbers in the split, sorted.
    preprocess: shows the images.
    block: images that are asked about at once, and written at once.
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
    """In bytes, of all tables."""
    return sum(table.size for table in self.tables)

  def only(self, numbers: Sequence[int]) -> 'BuildRequest':
    """The request for some of its tables."""
    def teach(frozen, images):
      every = self.teach(frozen, images)
      return tuple(every[number] for number in numbers)

    return dataclasses.replace(
        self, teach=teach, tables=tuple(self.tables[number] for number in numbers))

  def table_folder(self, table: Table) -> epath.Path:
    """Of a table's files, where they are kept on the disk."""
    kind = digests.of_json([table.identity['kind of rows'], table.shape[1]])
    return self.folder / 'cache' / kind[:16]


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
  return min(devices.num_devices() * free, available)  # It passes through the host.


def described(shape: tuple[int, int, int], place: str, kind: str) -> str:
  """What a table of such a shape holds, and how much it takes."""
  images, slots, width = shape
  return (f'{images:,} images x {slots} views x {width:,} numbers, {_in_words(size(shape))} on the '
          f'{place}: {kind}')


def _in_words(count: int) -> str:
  return f'{count / 1e9:.2f} GB'


def make(request: BuildRequest, forget: Callable[[], None]) -> list[Signals]:
  """The tables; the first alone where there is no room for all, or one of the others fails.

  Args:
    request: what to make.
    forget: drops tables that are kept in this process.

  Raises:
    ConfigError: there is no room for the first one, or one on the disk does not serve.
    TrainingError: what the teachers say for the first one is not finite.
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
  """What of the request there is room for in memory."""
  place, path = request.place, request.folder
  if not has_room(place, request.size, path):
    forget()  # The tables of other students can be made again.
  if has_room(place, request.size, path):
    return request
  require_room(place, request.tables[0].size, path)
  return request.only([0])


def _in_memory(request: BuildRequest) -> list[np.ndarray]:
  """The rows of each table, filled up with zeros so that devices can share the images evenly."""
  share = devices.num_devices() if request.place == 'device' else 1
  length = -(-request.tables[0].shape[0] // share) * share
  made = [np.zeros((length, *table.shape[1:]), DTYPE) for table in request.tables]
  done = 0
  for blocks in _blocks(request, 0, request.block):
    for rows, block in zip(made, blocks, strict=True):
      rows[done:done + len(block)] = block
    done += len(blocks[0])
  return made


def _on_disk(request: BuildRequest) -> list[np.ndarray]:
  """The rows of each table, built where they are not there.

  One process builds, the others wait for it.
  """
  folders = [request.table_folder(table) for table in request.tables]
  with contextlib.ExitStack() as stack:
    for folder in sorted(folders) if processes.is_first() else ():
      stack.callback(store.lock(folder).release)
    stores = [store.Store(folder, table.identity, table.shape, DTYPE, request.block)
              for folder, table in zip(folders, request.tables, strict=True)]
    begun: dict[tuple[int, int], list[int]] = {}  # Those that go on alike are built together.
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
  """Adds to stores that hold so many images what they lack."""
  images, *_ = request.tables[0].shape
  require_room('disk', request.size * (images - done) // images, stores[0].folder)
  for blocks in _blocks(request, done, block):
    if processes.is_first():  # It alone writes.
      for opened, rows in zip(stores, blocks, strict=True):
        opened.add(rows)


def _blocks(request: BuildRequest, done: int, block: int) -> Iterator[list[np.ndarray]]:
  """Rows [images, slots, width] of each table, of one block of images after the other.

  The first image is `done`.
  """
  loader, preprocess = request.loader(), request.preprocess

  def rows_of(slot, frozen, resident, feed):
    """To rows [batch, width] of each table, of all devices' images."""
    batch = loader.gather(resident, feed)
    number = preprocess.number(batch['index'], jnp.full(batch['index'].shape, slot))
    signals = request.teach(frozen, preprocess.view(batch['image'], number))
    return tuple(devices.gather(rows_lib.flatten(signal).astype(DTYPE)) for signal in signals)

  step = devices.pmap_step(rows_of)
  frozen = devices.replicate(request.frozen)
  subset = request.subset[done:]
  even = -(-block // devices.num_devices()) * devices.num_devices()
  batches = ({'index': np.resize(batch['index'], even)}  # So that the devices can share it evenly.
             for batch in sampling.eval_batches(subset, block))
  feeds = loader.feeds(map(devices.local_slice, batches))
  for start, feed in zip(range(0, len(subset), block), feeds, strict=True):
    shared = devices.shard(feed)
    # One call a slot: within a loop of its own XLA computes convolutions slowly on a CPU.
    by_slot = [step(np.int32(slot), frozen, loader.resident, shared)
               for slot in range(request.tables[0].shape[1])]
    count = min(block, len(subset) - start)
    blocks = [np.stack(rows, axis=1)[:count]
              for rows in zip(*devices.to_host(by_slot), strict=True)]
    if not all(np.isfinite(rows).all() for rows in blocks):
      raise errors.TrainingError(
          'config.compute.cache: the teachers say what is not finite in float16; look at the '
          'teacher, or set it to none')
    yield blocks
    if start // block % 10 == 0:
      logger.info(f'cache: {done + start + count:,} of {done + len(subset):,} images')
