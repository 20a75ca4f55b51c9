"""Random images and labels, to time a program whose result does not matter."""
import functools

import numpy as np

from kdih.data.spec import DataSpec
from kdih.data.splits import Splits

_DIFFERENT = 256  # The number of different images; a larger data set repeats them.


class MadeImages:
  """Random images and labels; see `kdih.data.loaders.Examples`.

  Args:
    spec: the data set whose image shape and number of classes they have.
    count: the number of examples.
    seed: the seed of pixels and labels.
  """

  def __init__(self, spec: DataSpec, count: int, seed: int = 0):
    self._shape, self._seed = (min(count, _DIFFERENT), *spec.image_shape), seed
    self._labels = np.random.default_rng((seed, 1)).integers(0, spec.num_classes, count, np.int32)

  @functools.cached_property
  def _images(self) -> np.ndarray:  # Drawn when they are first read: large ones take much memory.
    return np.random.default_rng(self._seed).integers(0, 256, self._shape, np.uint8)

  def __len__(self) -> int:
    return len(self._labels)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of examples."""
    return self._images[indices % len(self._images)], self._labels[indices]

  def labels(self) -> np.ndarray:
    """Returns the int32 labels of all examples."""
    return self._labels


def made_splits(
    spec: DataSpec, train: int, test: int = 1, seed: int = 0, loader: str = 'memory'
) -> Splits:
  """Returns splits of `train` and `test` random images, read by one of `choices.LOADERS`."""
  return Splits({'train': MadeImages(spec, train, seed), 'test': MadeImages(spec, test, seed + 1)},
                loader, spec.classes)
