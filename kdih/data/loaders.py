"""Two loaders of examples: one keeps a split on the devices, one reads it batch by batch.

A loader turns batches of indices (kdih.data.sampling) into `feeds`, one per step, that are split
over the devices; `gather(resident, feed)`, called inside the compiled step, turns a feed into
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
  """A split with random access, such as a `kdih.data.source.Source`."""

  def __len__(self) -> int:
    """Returns the number of examples."""

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads uint8 images [n, height, width, channels] and int32 labels [n] of examples."""

  def labels(self) -> np.ndarray:
    """Returns the int32 labels of all examples."""


class Loader(Protocol):
  """A source of batches for the training loop and for evaluation.

  Attributes:
    resident: a tree of arrays that stay on every device.
  """

  resident: Any

  def feeds(self, batches: Iterable[sampling.Batch]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays that a step gets from the host, for each of `batches`."""

  def gather(self, resident: Any, feed: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the examples of a feed, inside the compiled step."""


class MemoryLoader:
  """A loader that keeps the whole split as uint8 on every device; a step gets indices alone.

  Each process reads a part of the split and gets the other parts from the other processes.
  """

  def __init__(self, source: Examples):
    count, processes = len(source), devices.num_processes()
    # The last image is repeated to make the parts of all processes equally large.
    indices = np.minimum(np.arange(-(-count // processes) * processes), count - 1)
    mine = devices.local_slice({'index': indices})['index']
    images, labels = (devices.all_processes(part)[:count] for part in source.read(mine))
    self.resident = devices.replicate({'image': images, 'label': labels})

  def feeds(self, batches):
    return iter(batches)

  def gather(self, resident, feed):
    return {**feed, **{name: array[feed['index']] for name, array in resident.items()}}


class StreamingLoader:
  """A loader that reads batches in parallel and ahead of the step, with tf.data."""

  def __init__(self, source: Examples):
    self.resident: dict[str, Any] = {}
    self._source = source

  def feeds(self, batches):
    import tensorflow as tf  # Takes seconds; the in-memory loader does not need it.

    batches = iter(batches)
    for first in batches:  # All batches have the shapes of the first.
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
    del resident  # The feed holds the examples.
    return feed


LOADERS: dict[str, Callable[[Examples], Loader]] = {
    'memory': MemoryLoader, 'streaming': StreamingLoader}


def make_loader(name: str, source: Examples) -> Loader:
  """Returns the loader `name` ('memory' or 'streaming') of a split."""
  return LOADERS[name](source)
