"""Which examples make up which batch: the seeded order that both loaders follow."""
import functools
from collections.abc import Iterator

import numpy as np

Batch = dict[str, np.ndarray]


def split_validation(
    num_examples: int, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a validation set from a train split.

  Returns:
    Sorted int32 indices of the examples to train with and of those to validate with,
    `round(fraction * num_examples)` of them, drawn without replacement.
  """
  order = np.random.default_rng(seed).permutation(num_examples).astype(np.int32)
  cut = round(fraction * num_examples)
  return np.sort(order[cut:]), np.sort(order[:cut])


@functools.lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(num_examples)


def _train_indices(subset: np.ndarray, batch_size: int, seed: int, step: int) -> np.ndarray:
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs, offsets = np.divmod(positions, len(subset))
  order = [_epoch_order(len(subset), seed, int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
  return subset[np.concatenate(order)]


def train_batches(
    subset: np.ndarray, batch_size: int, seed: int, start: int, stop: int
) -> Iterator[Batch]:
  """Batches of steps `start` to `stop - 1`: {'index': int32[batch]}.

  Epochs are seeded permutations of `subset`, laid end to end: every batch is full, and every
  example is seen once an epoch. A step's batch depends on its number alone, not on `start`.
  """
  for step in range(start, stop):
    yield {'index': _train_indices(subset, batch_size, seed, step)}


def eval_batches(subset: np.ndarray, batch_size: int) -> Iterator[Batch]:
  """All of `subset` once, in order: {'index': int32[batch], 'mask': float32[batch]}.

  The last batch is filled up with examples whose mask is 0.
  """
  for start in range(0, len(subset), batch_size):
    index = subset[start:start + batch_size]
    missing = batch_size - len(index)
    mask = np.concatenate([np.ones(len(index)), np.zeros(missing)]).astype(np.float32)
    yield {'index': np.concatenate([index, np.full(missing, index[0])]), 'mask': mask}
