"""The train and test splits as training reads them, and the validation set cut from train."""
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from kdih import errors
from kdih.data import images, loaders
from kdih.data.loaders import Examples, Loader
from kdih.data.spec import looks
from kdih.runtime import devices

logger = logging.getLogger(__name__)

_LOOKED_AT = 256  # The number of examples of a split that the streaming loader checks.
_BLOCK = 2**28  # Bytes of images that are read at a time, if they are more than one.
_FEW = 100  # Fewer validation images than this choose a checkpoint by chance.


def validation_sizes(num_examples: int, fraction: float) -> tuple[int, int]:
  """Returns the numbers of examples to train and to validate with; see `split_validation`."""
  validation = round(fraction * num_examples)
  return num_examples - validation, validation


def split_validation(
    num_examples: int, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a validation set from a train split.

  Returns:
    Sorted int32 indices of the examples to train with, and of the examples to validate with. The
    latter are `round(fraction * num_examples)` examples, drawn without replacement.
  """
  order = np.random.default_rng(seed).permutation(num_examples).astype(np.int32)
  _, cut = validation_sizes(num_examples, fraction)
  return np.sort(order[cut:]), np.sort(order[:cut])


class Splits:
  """The splits of a data set; a loader is made when it is first needed and then kept.

  Args:
    sources: the 'train' and 'test' split.
    loader: the kind of loader, one of `choices.LOADERS`.
    classes: the names of the classes, in order; () if they are unknown.
  """

  def __init__(
      self, sources: Mapping[str, Examples], loader: str, classes: tuple[str, ...] = ()):
    self.classes = classes
    self._sources = sources
    self._loader = loader
    self._loaders: dict[str, Loader] = {}

  def check(self, validation_fraction: float) -> None:
    """Checks the examples before training, and logs how many images each split has.

    Logs a warning if there are few images to validate with, or if a class has no test image. The
    in-memory loader reads every example of both splits. The streaming loader reads a few hundred,
    spread evenly; it finds damage to the others only when it reads them.

    Args:
      validation_fraction: `config.data.validation_fraction`.

    Raises:
      DataError: an example is damaged, a label is outside the classes, or all train
        images are of one class.
    """
    labels = self._look_at_all()
    if _is_one(labels['train']) and _is_one(self.labels('train')):
      raise errors.DataError(
          f'config.data.train_split: all {self.size("train"):,} images are of one class, number '
          f'{labels["train"][0]}; at least two are needed; choose more of the split')
    train, validation = validation_sizes(self.size('train'), validation_fraction)
    logger.info(f'data: {train:,} images to train, {validation:,} to validate and '
                f'{self.size("test"):,} to test with; {self._loader} loader')
    if 0 < validation < _FEW:
      logger.warning(
          f'data: {validation} validation images are too few to choose a checkpoint by; set '
          'config.data.validation_fraction=0 to keep the last one, or to a larger number')
    for names in _alike(self.classes):
      logger.warning(f'data: the classes {" and ".join(map(ascii, names))} differ only in case, '
                     'blanks or the form of a letter; if they are one class, give it one name')
    if self.classes and len(labels['test']) == self.size('test') and (
        missing := sorted(set(range(len(self.classes))) - set(labels['test'].tolist()))):
      logger.warning('data: there are no test images of the class '
                     + ', '.join(self.classes[label] for label in missing))

  def _look_at_all(self) -> dict[str, np.ndarray]:
    """Returns the labels of the examples that `check` reads, by split."""
    try:
      return {split: self._look_at(split) for split in self._sources}
    except images.UnreadableImagesError as error:
      # The other split may have such files, too. It is read without a loader: the loaders of all
      # processes wait for each other.
      faults = dict(error.faults)
      for split in self._sources:
        try:
          for _ in self.sample(split, self.size(split) if self._loader == 'memory' else _LOOKED_AT):
            pass
        except images.UnreadableImagesError as more:
          faults |= more.faults
      raise images.UnreadableImagesError(faults) from error

  def _look_at(self, split: str) -> np.ndarray:
    """Returns the labels of the examples that `check` reads."""
    if self.loader(split).resident:
      return self.labels(split)
    return np.concatenate([labels for _, labels in self.sample(split, _LOOKED_AT)])

  def sample(self, split: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images and labels of `count` examples, spread evenly, or of all if there are fewer.

    They come in blocks, which fit into memory if they are large.

    Raises:
      UnreadableImagesError: some of all these files are no images.
      DataError: an example is damaged.
    """
    count = min(count, self.size(split))
    chosen = np.linspace(0, self.size(split) - 1, count).astype(int)
    start, length = 0, 1
    faults: dict[pathlib.Path, str] = {}
    while start < count:
      try:
        found, labels = self._sources[split].read(chosen[start:start + length])
      except images.UnreadableImagesError as error:
        faults |= error.faults
        start += length
      else:
        yield found, labels
        start += length
        length = max(1, _BLOCK // found[0].nbytes)
    if faults:
      raise images.UnreadableImagesError(faults)

  def size(self, split: str) -> int:
    """Returns the number of images in a split; validation images are counted in 'train'."""
    return len(self._sources[split])

  def loader(self, split: str) -> Loader:
    """Returns the loader of a split."""
    if split not in self._loaders:
      self._loaders[split] = loaders.make_loader(self._loader, self._sources[split])
    return self._loaders[split]

  def labels(self, split: str) -> np.ndarray:
    """Returns the int32 labels of all images of a split."""
    if split in self._loaders and 'label' in self._loaders[split].resident:
      return devices.to_host(self._loaders[split].resident['label'])
    return self._sources[split].labels()


def _alike(names: Iterable[str]) -> list[list[str]]:
  """Returns the groups of names that a reader would take for the same."""
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(looks(name), []).append(name)
  return [group for group in groups.values() if len(group) > 1]


def _is_one(labels: np.ndarray) -> bool:
  return bool((labels == labels[0]).all())
