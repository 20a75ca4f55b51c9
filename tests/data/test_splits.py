"""The validation split, cut from the train split; and images that are read in blocks."""
import dataclasses

import numpy as np
import pytest

from kdih.data import splits
from kdih.data.made import MadeImages
from kdih.data.spec import DataSpec
from kdih.runtime import digests

SPEC = DataSpec('made', (4, 4, 1), 2, ('ant', 'bee'))


@pytest.mark.parametrize('count, fraction, size', [(100, 0.1, 10), (1437, 0.1, 144), (50, 0.0, 0)])
def test_the_validation_split_is_disjoint_complete_and_seeded(count, fraction, size):
  train, held_out = splits.split_validation(count, fraction, 0)
  assert len(held_out) == size and train.dtype == held_out.dtype == np.int32
  np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(count))
  np.testing.assert_array_equal(splits.split_validation(count, fraction, 0)[1], held_out)
  assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
  if size:
    assert not np.array_equal(splits.split_validation(count, fraction, 1)[1], held_out)


class Labelled(MadeImages):
  """Made images with given labels."""

  def __init__(self, given):
    super().__init__(SPEC, len(given))
    self._given = np.array(given, np.int32)

  def read(self, indices):
    return super().read(indices)[0], self._given[indices]

  def labels(self):
    return self._given


@pytest.mark.parametrize(('train', 'fraction', 'warning'), [
    (400, 0.1, 'data: 40 validation images are too few to choose a checkpoint by; set '),
    (400, 0.25, ''), (400, 0, '')])
def test_few_validation_images_are_reported(train, fraction, warning, capsys):
  splits.Splits({'train': Labelled([0, 1] * (train // 2)), 'test': Labelled([0, 1])},
                'memory', SPEC.classes).check(fraction)
  size = round(fraction * train)
  sizes, *warnings = capsys.readouterr().err.splitlines()
  assert sizes == (f'data: {train - size} images to train, {size} to validate and 2 to test with; '
                   'memory loader')
  assert len(warnings) == bool(warning) and ''.join(warnings).startswith(warning)


def test_a_class_without_test_images_is_named(capsys):
  splits.Splits({'train': Labelled([0, 1]), 'test': Labelled([1, 1])},
                'memory', SPEC.classes).check(0)
  assert capsys.readouterr().err.splitlines()[1:] == [
      'data: there are no test images of the class ant']


@pytest.mark.parametrize(('bound', 'lengths'), [(2**28, [1, 9]), (3 * 4 * 4, [1, 3, 3, 3]),
                                                (1, [1] * 10)])
def test_a_sample_is_read_in_blocks_that_fit_into_memory(monkeypatch, bound, lengths):
  monkeypatch.setattr(splits, '_BLOCK', bound)
  made = MadeImages(SPEC, 40)
  blocks = list(splits.Splits({'train': made}, 'streaming').sample('train', 10))
  assert [len(images) for images, _ in blocks] == lengths
  whole = made.read(np.linspace(0, 39, 10).astype(int))
  assert digests.of_rows(10, blocks) == digests.of(whole)
  assert digests.of_rows(10, blocks[::-1]) != digests.of(whole)


def test_images_that_would_fill_the_memory_are_drawn_when_they_are_read():
  made = MadeImages(dataclasses.replace(SPEC, image_shape=(2**17, 2**17, 3)), 40)
  assert len(made) == len(made.labels()) == 40
