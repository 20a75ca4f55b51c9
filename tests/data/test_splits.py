"""The validation split, cut from the train split."""
import numpy as np
import pytest

from kdih.data import splits


@pytest.mark.parametrize('count, fraction, size', [(100, 0.1, 10), (1437, 0.1, 144), (50, 0.0, 0)])
def test_the_validation_split_is_disjoint_complete_and_seeded(count, fraction, size):
  train, held_out = splits.split_validation(count, fraction, 0)
  assert len(held_out) == size and train.dtype == held_out.dtype == np.int32
  np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(count))
  np.testing.assert_array_equal(splits.split_validation(count, fraction, 0)[1], held_out)
  assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
  if size:
    assert not np.array_equal(splits.split_validation(count, fraction, 1)[1], held_out)
