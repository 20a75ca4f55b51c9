"""Which examples make up which batch."""
import numpy as np
import pytest

from kdih.data import sampling

SUBSET = np.array([3, 4, 8, 9, 11, 15, 16, 20, 21, 30], np.int32)


def indices(*args):
  return [batch['index'] for batch in sampling.train_batches(*args)]


@pytest.mark.parametrize('batch_size', [1, 4, 5, 10, 32])
def test_every_epoch_shows_each_example_of_the_subset_once(batch_size):
  batches = indices(SUBSET, batch_size, 30, 0, -(-50 // batch_size))
  assert {batch.shape for batch in batches} == {(batch_size,)}
  assert {batch.dtype for batch in batches} == {np.dtype(np.int32)}
  epochs = np.concatenate(batches)[:50].reshape(5, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(SUBSET, (5, 1)))
  assert len({epoch.tobytes() for epoch in epochs}) == 5


@pytest.mark.parametrize('start', [1, 2, 7, 11])
def test_batches_depend_on_the_seed_and_not_on_where_the_run_starts(start):
  whole = indices(SUBSET, 4, 30, 0, 12)
  np.testing.assert_array_equal(indices(SUBSET, 4, 30, start, 12), whole[start:])
  assert not np.array_equal(indices(SUBSET, 4, 31, 0, 12), whole)


@pytest.mark.parametrize('batch_size, masks', [(4, [4, 4, 2]), (5, [5, 5]), (16, [10])])
def test_evaluation_shows_each_example_once_and_masks_the_filling(batch_size, masks):
  batches = list(sampling.eval_batches(SUBSET, batch_size))
  assert [batch['mask'].sum() for batch in batches] == masks
  assert {batch[key].shape for batch in batches for key in batch} == {(batch_size,)}
  index, mask = (np.concatenate([batch[key] for batch in batches]) for key in ('index', 'mask'))
  assert (index.dtype, mask.dtype) == (np.int32, np.float32)
  np.testing.assert_array_equal(index[mask == 1], SUBSET)
  assert set(index) == set(SUBSET) and set(mask) <= {0, 1}
