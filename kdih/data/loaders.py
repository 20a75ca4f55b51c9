"""Two ways to bring the examples of a batch to the devices, alike in all but where they wait.

A loader turns batches of indices (kdih.data.sampling) into `feeds`, one per step, that are split
over the devices; `gather(resident, feed)`, called inside the compiled step, makes of a feed
{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'index', 'mask'}.
"""
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from kdih import errors
from kdih.data import sampling
from kdih.runtime import devices


class Examples(Protocol):
  """What the loaders need of a split, such as a `kdih.data.source.Source`."""

  def __len__(self) -> int:
    """How many there are."""

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [n, height, width, channels], and labels, int32 [n], of some examples."""

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
    count, processes = len(source), devices.num_processes()
    # Of all images, the last one repeated until the processes can share them evenly.
    indices = np.minimum(np.arange(-(-count // processes) * processes), count - 1)
    mine = devices.local_slice({'index': indices})['index']
    images, labels = (devices.all_processes(part)[:count] for part in source.read(mine))
    self.resident = devices.replicate({'image': images, 'label': labels})

  def feeds(self, batches):
    """Passes the indices on."""
    return iter(batches)

  def gather(self, resident, feed):
    """Looks the indices up in the resident arrays."""
    return {**feed, **{name: array[feed['index']] for name, array in resident.items()}}


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


LOADERS: dict[str, Callable[[Examples], Loader]] = {
    'memory': MemoryLoader, 'streaming': StreamingLoader}


def make_loader(name: str, source: Examples) -> Loader:
  """The loader `name` ('memory' or 'streaming') over a split."""
  return LOADERS[name](source)
