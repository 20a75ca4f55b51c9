"""The seeded order of examples, and their batches; both loaders follow it."""
import functools
from collections.abc import Iterator

import numpy as np

Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(num_examples)


def train_batches(
    subset: np.ndarray, batch_size: int, seed: int, start: int, stop: int
) -> Iterator[Batch]:
  """Yields the batches {'index': int32 [batch]} of the steps `start` to `stop - 1`.

  Epochs are seeded permutations of `subset`, laid end to end: every batch is full, and every
  example occurs once in an epoch. A step's batch depends on its number alone, not on `start`.
  """
  for step in range(start, stop):
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, len(subset))
    order = [_epoch_order(len(subset), seed, int(epoch))[offsets[epochs == epoch]]
             for epoch in np.unique(epochs)]
    yield {'index': subset[np.concatenate(order)]}


def eval_batches(subset: np.ndarray, batch_size: int) -> Iterator[Batch]:
  """Yields `subset` once, in order, as batches {'index': int32 [batch], 'mask': float32 [batch]}.

  The last batch is filled up with examples whose mask is 0.
  """
  for start in range(0, len(subset), batch_size):
    index = subset[start:start + batch_size]
    missing = batch_size - len(index)
    mask = np.concatenate([np.ones(len(index)), np.zeros(missing)]).astype(np.float32)
    yield {'index': np.concatenate([index, np.full(missing, index[0])]), 'mask': mask}
