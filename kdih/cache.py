"""What teachers say of every view of the training images, computed once for all students.

`config.compute.cache` asks for it. Rows are float16: of logits and of probabilities it keeps 11
bits, bfloat16 8.
"""
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import psutil
from etils import epath

from kdih import (
  config_compute,
  data,
  errors,
  fingerprint,
  heard,
  heard_files,
  modules,
  parallel,
  phases,
  tasks,
  teaching,
)
from kdih.experiment import Experiment
from kdih.modules import Modules
from kdih.progress import say
from kdih.workdir import is_remote

DTYPE = np.dtype(np.float16)
_SHARE = 0.9  # Of the memory that is free, what a table may take.
_kept: dict[str, tuple[dict, heard.NoTable]] = {}  # Tables of one teacher, for the next student.


def serves(config: ml_collections.ConfigDict, built: Modules, name: str) -> bool:
  """Whether students of the method `name` are taught from a cache."""
  return config.compute.cache != 'none' and modules.heard_width(built, name) > 0


def check(
    config: ml_collections.ConfigDict, built: Modules, path: epath.Path, num_examples: int
) -> None:
  """Raises ConfigError where the config asks for a cache that cannot be; computes nothing.

  Args:
    config: of the run.
    built: its modules.
    path: the workdir of teacher and heads.
    num_examples: size of the train split.
  """
  if config.compute.cache == 'none' or 'student' not in config.phases:
    return
  preprocess = data.of_config(config, config_compute.fixed_views(config.compute.cache))
  if preprocess.num_slots > preprocess.num_views:
    raise errors.ConfigError(
        f'config.compute.cache: {config.compute.cache!r} asks for more views than the augmentation '
        f'can show of an image, which are {preprocess.num_views}; set it to all_views')
  taught = [name for name, method in built.methods.items() if method.taught_by != 'labels']
  served = [name for name in taught if serves(config, built, name)]
  if taught and not served:
    raise errors.ConfigError(
        f'config.compute.cache: the method {", ".join(taught)} needs more of the teacher than '
        'logits, which is all that can be cached; set it to none')
  _check_place(config, path)
  images = num_examples - round(config.data.validation_fraction * num_examples)
  needed = [_size((images, preprocess.num_slots, modules.heard_width(built, name)))
            for name in served]
  if needed and config.compute.cache_place != 'disk':  # There it may exist already.
    _require_room(config.compute.cache_place, max(needed), path)


def _check_place(config: ml_collections.ConfigDict, path: epath.Path) -> None:
  if config.compute.cache_place == 'disk' and is_remote(path):
    raise errors.ConfigError(f'config.compute.cache_place: {path} is on no disk of this machine; '
                             'choose device or host, or another --workdir')


def _size(shape: tuple[int, int, int]) -> int:
  return shape[0] * shape[1] * shape[2] * DTYPE.itemsize


def _require_room(place: str, size: int, path: epath.Path) -> None:
  """Raises ConfigError unless `size` bytes are free at the place."""
  free = _free(place, path)
  if size > free * _SHARE:
    others = ' or '.join(other for other in ('device', 'host', 'disk') if other != place)
    raise errors.ConfigError(
        f'config.compute.cache_place: what the teachers say takes {_in_words(size)}, and of the '
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


def _in_words(size: int) -> str:
  return f'{size / 1e9:.2f} GB'


@dataclasses.dataclass(frozen=True)
class _Order:
  """A table to be made.

  Attributes:
    experiment: whose training images it is about.
    name: of a method that hears what it holds.
    teacher: the module of the teacher, as it is asked.
    frozen: the variables of its teachers, and the weights.
    shape: (images, slots, width).
    identity: what it comes from.
  """

  experiment: Experiment
  name: str
  teacher: nn.Module
  frozen: dict[str, Any]
  shape: tuple[int, int, int]
  identity: dict[str, Any]

  @property
  def place(self) -> str:
    return self.experiment.config.compute.cache_place

  @property
  def folder(self) -> epath.Path:
    hears = fingerprint.of_json([self.identity['kind of rows'], self.shape[1]])
    return self.experiment.teachers.path / 'cache' / hears[:16]


def table(
    experiment: Experiment, name: str, teacher: nn.Module, frozen: dict[str, Any]
) -> heard.NoTable:
  """What the method `name` hears of the teachers, kept in this process for other students.

  Args:
    experiment: the run.
    name: of the method, which `serves`.
    teacher: the module of the teacher.
    frozen: {'teacher', 'heads', 'weights'}, as far as it is taught by them.

  Raises:
    ConfigError: there is no room for it, or the one on disk does not serve.
  """
  order = _order(experiment, name, teacher, frozen)
  key = fingerprint.of_json([order.identity, order.place])
  for other, (identity, _) in list(_kept.items()):
    if identity['teacher'] != order.identity['teacher']:
      del _kept[other]
  if key not in _kept:
    _kept[key] = order.identity, _made(order)
  return _kept[key][1]


def forget() -> None:
  """Drops every table that is kept in this process."""
  _kept.clear()


def _order(
    experiment: Experiment, name: str, teacher: nn.Module, frozen: dict[str, Any]
) -> _Order:
  preprocess, subset = experiment.student_preprocess, experiment.train_subset
  hearing = experiment.modules.methods[name].hearing or teaching.LOGITS
  shape = len(subset), preprocess.num_slots, modules.heard_width(experiment.modules, name)
  return _Order(experiment, name, teacher, frozen, shape, {
      **{part: fingerprint.of(frozen[part]) if part in frozen else ''
         for part in ('teacher', 'heads', 'weights')},
      'data set': phases.data_identity(experiment),
      'folder': experiment.config.data.folder, 'choice of images': fingerprint.of(subset),
      'augmentation': fingerprint.of_json(dataclasses.asdict(preprocess)),
      'kind of rows': hearing.name, 'shape': list(shape), 'type': DTYPE.name,
      'dtype of the teacher': [experiment.config.dtype, experiment.config.compute.teacher_dtype]})


def _made(order: _Order) -> heard.NoTable:
  images, slots, width = order.shape
  size = _in_words(_size(order.shape))
  say(f'cache: {images:,} images x {slots} views x {width} numbers, {size} on the {order.place}: '
      f'{order.identity["kind of rows"]}')
  subset, preprocess = order.experiment.train_subset, order.experiment.student_preprocess
  if order.place == 'disk':
    return heard.HostTable(_on_disk(order), subset, preprocess)
  try:
    _require_room(order.place, _size(order.shape), order.folder)
  except errors.ConfigError:
    forget()  # What other methods hear can be made again.
    _require_room(order.place, _size(order.shape), order.folder)
  if order.place == 'host':
    return heard.HostTable(_in_memory(order, images), subset, preprocess)
  devices = parallel.num_devices()
  return heard.DeviceTable(_in_memory(order, -(-images // devices) * devices), subset, preprocess)


def _in_memory(order: _Order, length: int) -> np.ndarray:
  """The rows, filled up with zeros to `length` images."""
  rows, done = np.zeros((length, *order.shape[1:]), DTYPE), 0
  for block in _blocks(order, 0, order.experiment.config.data.eval_global_batch_size):
    rows[done:done + len(block)] = block
    done += len(block)
  return rows


def _on_disk(order: _Order) -> np.ndarray:
  """The rows, built where they are not there; one process builds, the others wait for it."""
  held = heard_files.lock(order.folder) if heard_files.writes() else None
  try:
    store = heard_files.Store(order.folder, order.identity, order.shape, DTYPE,
                              order.experiment.config.data.eval_global_batch_size)
    done = heard_files.first_only(store.done)
    if done < order.shape[0]:
      _require_room('disk', _size((order.shape[0] - done, *order.shape[1:])), order.folder)
    for block in _blocks(order, done, heard_files.first_only(store.block)):
      if heard_files.writes():
        store.add(block)
    parallel.wait_for_all('cache built')
    return store.rows()
  finally:
    if held:
      held.release()


def _blocks(order: _Order, done: int, block: int) -> Iterator[np.ndarray]:
  """Rows [images, slots, width] of one block of images after the other, from image `done` on."""
  experiment = order.experiment
  loader = experiment.splits.loader('train')
  step = _make_step(order, loader.gather)
  frozen, devices = parallel.replicate(order.frozen), parallel.num_devices()
  subset, size = experiment.train_subset[done:], -(-block // devices) * devices
  batches = data.eval_batches(subset, block)
  feeds = loader.feeds(map(parallel.share, map(functools.partial(_filled, size), batches)))
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


def _filled(size: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The batch of indices, filled up to a `size` that the devices can share evenly."""
  return {'index': np.resize(batch['index'], size)}


def _make_step(order: _Order, gather: Callable) -> Callable:
  """(slot, frozen, resident, feed) to rows [batch, width] of a batch of images, of all devices."""
  built, preprocess = order.experiment.modules, order.experiment.student_preprocess
  method = built.methods[order.name]
  hearing = method.hearing or teaching.LOGITS
  teach = tasks.make_teach(method.taught_by, order.teacher, (), built.heads, tuple(built.taps))

  def step(slot, frozen, resident, feed):
    batch = gather(resident, feed)
    number = preprocess.number(batch['index'], jnp.full(batch['index'].shape, slot))
    said = teach(frozen, preprocess.view(batch['image'], number))
    return parallel.gather(hearing.rows(*said, frozen.get('weights', {})).astype(DTYPE))

  return parallel.pmap_step(step)
