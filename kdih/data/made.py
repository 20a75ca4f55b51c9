"""Made images: random pixels and labels, where the time of a program matters and not its result."""
import numpy as np

from kdih.data.spec import DataSpec
from kdih.data.splits import Splits

_DIFFERENT = 256  # Images; more are these again, so that a large data set is made at once.


class MadeImages:
  """Random images and labels of the shape and number of classes of a data set.

  Args:
    spec: of the data set.
    count: how many.
    seed: of the pixels.
  """

  def __init__(self, spec: DataSpec, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    self._images = rng.integers(0, 256, (min(count, _DIFFERENT), *spec.image_shape), np.uint8)
    self._labels = rng.integers(0, spec.num_classes, count, np.int32)

  def __len__(self) -> int:
    return len(self._labels)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `kdih.data.loaders.Examples`."""
    return self._images[indices % len(self._images)], self._labels[indices]

  def labels(self) -> np.ndarray:
    """Returns int32 labels of all."""
    return self._labels


def made_splits(
    spec: DataSpec, train: int, test: int = 1, seed: int = 0, loader: str = 'memory'
) -> Splits:
  """Returns splits of so many made images; `loader` is one of `choices.LOADERS`."""
  return Splits({'train': MadeImages(spec, train, seed), 'test': MadeImages(spec, test, seed + 1)},
                loader, spec.classes, quiet=True)
