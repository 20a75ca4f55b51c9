"""Two ways to bring the examples of a batch to the devices, alike in all but where they wait.

A loader turns batches of indices (kdih.data.sampling) into `feeds`, one per step, that are split
over the devices; `gather(resident, feed)`, called inside the compiled step, makes of a feed
{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'index', 'mask'}.
"""
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from kdih import errors, parallel
from kdih.data import decoded, sampling
from kdih.progress import say


class Examples(decoded.Split, Protocol):
  """What the loaders need of a split, such as a `kdih.data.source.Source`."""

  def __len__(self) -> int:
    """How many there are."""

  def labels(self) -> np.ndarray:
    """int32 labels of all."""


class Loader(Protocol):
  """What the steps and the loop need of a loader."""

  resident: Any  # Arrays that stay on every device.

  def feeds(self, batches: Iterable[sampling.Batch]) -> Iterator[dict[str, np.ndarray]]:
    """What a step needs from the host, for each of `batches`."""

  def gather(self, resident: Any, feed: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The examples of a feed, inside the compiled step."""


class MemoryLoader:
  """Keeps the whole split as uint8 on every device; a step receives indices alone.

  Each process reads a part of it, and gets the others' from them.
  """

  def __init__(self, source: Examples):
    indices = parallel.share({'index': _filled_up(len(source))})['index']
    images, labels = (parallel.put_together(part)[:len(source)]
                      for part in decoded.read(source, indices))
    self.resident = parallel.replicate({'image': images, 'label': labels})

  def feeds(self, batches):
    """Passes the indices on."""
    return iter(batches)

  def gather(self, resident, feed):
    """Looks the indices up in the resident arrays."""
    return {**feed, **{name: array[feed['index']] for name, array in resident.items()}}


def _filled_up(count: int) -> np.ndarray:
  """Indices of all images, the last one repeated until the processes can share them evenly."""
  return np.minimum(np.arange(-(-count // parallel.num_processes()) * parallel.num_processes()),
                    count - 1)


class StreamingLoader:
  """Reads each batch when its turn comes, in parallel and ahead of the step, with tf.data."""

  def __init__(self, source: Examples):
    self.resident: dict[str, Any] = {}
    self._source = source

  def feeds(self, batches):
    """Adds images and labels to the batches of indices."""
    import tensorflow as tf  # Takes seconds; the in-memory loader does without.

    batches = iter(batches)
    for first in batches:  # The first tells the shapes of all.
      return self._stream(tf, itertools.chain([first], batches), first)
    return iter(())

  def _stream(self, tf, batches, first):
    failures: list[errors.DataError] = []

    def read(index):
      try:
        return self._source.read(index)
      except errors.DataError as error:
        failures.append(error)  # TensorFlow would bury it in a message of its own.
        raise

    def add_examples(batch):
      images, labels = tf.numpy_function(read, [batch['index']], (tf.uint8, tf.int32),
                                         stateful=False)
      return {**batch, 'image': images, 'label': labels}

    signature = {name: tf.TensorSpec(a.shape, a.dtype) for name, a in first.items()}
    dataset = tf.data.Dataset.from_generator(lambda: batches, output_signature=signature)
    dataset = dataset.map(add_examples, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
      yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.OpError as error:
      raise failures[0] if failures else error from None

  def gather(self, resident, feed):
    """The feed holds the examples already."""
    del resident
    return feed


_LOOKED_AT = 256  # Examples of a split that the streaming loader reads at the start.
LOADERS: dict[str, Callable[[Examples], Loader]] = {
    'memory': MemoryLoader, 'streaming': StreamingLoader}


def make_loader(name: str, source: Examples) -> Loader:
  """The loader `name` ('memory' or 'streaming') over a split."""
  return LOADERS[name](source)


class Splits:
  """The splits of a data set, each read when first asked for and then kept.

  Args:
    sources: the 'train' and 'test' split.
    loader: how they are read, a key of `LOADERS`.
  """

  def __init__(self, sources: Mapping[str, Examples], loader: str):
    self._sources, self._loader = sources, loader
    self._loaders: dict[str, Loader] = {}

  def check(self) -> None:
    """Reads what there is to know before training.

    The in-memory loader reads every example of both splits; the streaming loader a few hundred,
    spread evenly, and the others when their turn comes.

    Raises:
      DataError: an example is damaged, a label is none of the classes, or all images to train
        with are of one class.
    """
    found = {split: self._look_at(split) for split in self._sources}
    if _is_one(found['train']) and _is_one(self.labels('train')):
      raise errors.DataError(
          f'config.data.train_split: all {self.size("train"):,} images are of one class, number '
          f'{found["train"][0]}; at least two are needed; choose more of the split')

  def _look_at(self, split: str) -> np.ndarray:
    """The labels of the examples that `check` reads."""
    if self.loader(split).resident:
      return self.labels(split)
    chosen = np.linspace(0, self.size(split) - 1, min(_LOOKED_AT, self.size(split)))
    return self._sources[split].read(chosen.astype(int))[1]

  def size(self, split: str) -> int:
    """Images in a split; validation images are counted in 'train'."""
    return len(self._sources[split])

  def loader(self, split: str) -> Loader:
    """The loader of a split."""
    if split not in self._loaders:
      say(f'data: {self.size(split):,} images of the {split} split, {self._loader} loader')
      self._loaders[split] = make_loader(self._loader, self._sources[split])
    return self._loaders[split]

  def labels(self, split: str) -> np.ndarray:
    """int32 labels of all images of a split."""
    resident = self.loader(split).resident
    if 'label' in resident:
      return parallel.to_host(resident['label'])
    return self._sources[split].labels()


def _is_one(labels: np.ndarray) -> bool:
  return bool((labels == labels[0]).all())
