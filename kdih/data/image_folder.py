"""A folder of image files, `SPLIT/CLASS/*.jpg`, as a data set that is read where it lies."""
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from kdih import errors
from kdih.data import images
from kdih.data.spec import DataSpec, looks
from kdih.runtime.files import is_remote, status, system_error

SUFFIXES = ('.jpg', '.jpeg', '.png')
_MAX_BYTES = 2**29
_LAYOUT = 'images lie in SPLIT/CLASS/, such as train/cat/1.jpg'

Classes = dict[str, list[str]]  # The names of the image files of each class.


class ImageFile(NamedTuple):
  """An image file as it was when its folder was opened.

  Attributes:
    name: 'SPLIT/CLASS/FILE'.
    label: the number of its class.
    size: in bytes.
    modified: the time of its last modification, in nanoseconds.
  """

  name: str
  label: int
  size: int
  modified: int


@dataclasses.dataclass(frozen=True)
class Info:
  """The attributes of a `tfds.core.DatasetInfo` that an `ImageFolder` has, too."""

  features: tfds.features.FeaturesDict
  splits: tfds.core.SplitDict


class ImageFolder:
  """Images of any size, read upright and as RGB; the classes are the names of their folders.

  A split's images are in the order in which TFDS writes generated examples, by a hash of their
  names: a slice such as 'train[:90%]' holds images of every class.

  Args:
    folder: absolute.
    files: the images of every split, in order.
    classes: the names of all classes, sorted.
    image_size: height and width of all images; None where they differ.

  Attributes:
    info: features and splits, as of a TFDS builder.
  """

  name = 'image_folder'

  def __init__(self, folder: pathlib.Path, files: dict[str, list[ImageFile]],
               classes: Sequence[str], image_size: tuple[int | None, int | None]):
    self._folder = folder
    self._files = files
    self.info = Info(
        tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(*image_size, 3)),
            'label': tfds.features.ClassLabel(names=classes)}),
        tfds.core.SplitDict([
            tfds.core.SplitInfo(name=split, shard_lengths=[len(found)], num_bytes=0)
            for split, found in self._files.items()]))

  def is_prepared(self) -> bool:
    """Returns True: nothing has to be written before the images can be read."""
    return True

  def files(self, split: str) -> list[ImageFile]:
    """Returns the files that a split selects, in order.

    Args:
      split: by TFDS's rules, such as 'train[:90%]+more'; see `selection.select` for its errors.
    """
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(self.info.splits)
    return [file for part in parts for file in self._files[part.splitname][part.from_:part.to]]

  def all_files(self) -> list[ImageFile]:
    """Returns the files of all splits."""
    return [file for files in self._files.values() for file in files]

  def faults(self) -> dict[pathlib.Path, str]:
    """Reads all images, and returns what is wrong with those that cannot be read."""
    found: dict[pathlib.Path, str] = {}
    for file in self.all_files():
      try:
        self.pixels(file)
      except images.UnreadableImagesError as error:
        found |= error.faults
    return found

  def content(self, file: ImageFile, last: int = 0) -> bytes:
    """Reads a file, or its `last` bytes.

    Raises:
      DataError: the file was changed or removed, or cannot be read.
    """
    path = self._folder / file.name
    try:
      with path.open('rb') as stream:
        now = os.fstat(stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (file.size, file.modified):
          raise _changed(path)
        stream.seek(max(file.size - last, 0) if last else 0)
        return stream.read()
    except OSError as error:
      raise _unreadable(path, error) from error

  def pixels(self, file: ImageFile) -> np.ndarray:
    """Reads an image, uint8 [height, width, 3].

    Raises:
      UnreadableImagesError: the file is no image.
      DataError: it was changed or removed, or cannot be read.
    """
    content, path = self.content(file), self._folder / file.name
    try:
      return images.decode_upright(content)
    except Exception as error:  # PIL raises many kinds.
      raise images.UnreadableImagesError({path: _fault(path, error)}) from error


class FolderSplit:
  """The images that a split selects, with random access; see `kdih.data.loaders.Examples`.

  Args:
    folder: the data set.
    split: such as 'train[:90%]'.
    spec: of the data set.
  """

  def __init__(self, folder: ImageFolder, split: str, spec: DataSpec):
    self.spec = spec
    self._folder = folder
    self._files = folder.files(split)
    self._labels = np.array([file.label for file in self._files], np.int32)

  def __len__(self) -> int:
    return len(self._files)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads and resizes images.

    Raises:
      UnreadableImagesError: some of the files are no images.
      DataError: a file was changed or removed, or cannot be read.
    """
    batch = np.empty((len(indices), *self.spec.image_shape), np.uint8)
    faults: dict[pathlib.Path, str] = {}
    for row, index in enumerate(indices):
      try:
        batch[row] = images.fit(self._folder.pixels(self._files[index]), self.spec.image_shape)
      except images.UnreadableImagesError as error:
        faults |= error.faults
    if faults:
      raise images.UnreadableImagesError(faults)
    return batch, self._labels[indices]

  def labels(self) -> np.ndarray:
    """Returns the int32 labels of all images."""
    return self._labels


def open_folder(data: ml_collections.ConfigDict) -> ImageFolder:
  """Lists the images in `config.data.folder`, in the splits that `config.data` names.

  Hidden files and files of other kinds are left out. Unless `config.data.image_size` is set, the
  header of every file is read to find out the size of all images.

  Raises:
    ConfigError: there is no such folder or split, or their classes do not fit together.
    UnreadableImagesError: some of the files are no images.
    DataError: a file cannot be read.
  """
  if not data.folder:
    raise errors.ConfigError('config.data.folder: is not set; name the folder that holds your '
                             f'images; {_LAYOUT}')
  if is_remote(data.folder):
    raise errors.ConfigError(f'config.data.folder: is {data.folder!r}, and images are read from a '
                             'disk; copy the folder to one, or mount it')
  try:
    folder = pathlib.Path(data.folder).expanduser().absolute()
    train, test = (_splits(folder, field, data[field]) for field in ('train_split', 'test_split'))
    files = {split: _list_split(folder, split) for split in dict.fromkeys((*train, *test))}
  except (OSError, RuntimeError) as error:
    raise errors.ConfigError(
        f'config.data.folder: {data.folder} cannot be read ({errors.first_line(error)})') from error
  classes = sorted({label for split in train for label in files[split]})
  _check_classes(folder, train[0], classes, files)
  labels = {name: label for label, name in enumerate(classes)}
  faults: dict[pathlib.Path, str] = {}
  images_of = {split: list(_image_files(folder, _mixed(split, found), labels, faults))
               for split, found in files.items()}
  size = (None, None) if data.image_size else _common_size(
      [folder / file.name for found in images_of.values() for file in found], faults)
  opened = ImageFolder(folder, images_of, classes, size)
  if faults:
    # The in-memory loader would decode every image next: what that finds is named at once.
    more = opened.faults() if data.loader == 'memory' else {}
    raise images.UnreadableImagesError({**faults, **more})
  return opened


def _splits(folder: pathlib.Path, field: str, split: str) -> list[str]:
  """Returns the folders that a split such as 'train[:90%]+more' is read from."""
  if not folder.is_dir():
    raise errors.ConfigError(f'config.data.folder: {folder} is no folder; {_LAYOUT}')
  names = [part.partition('[')[0].strip() for part in split.split('+')]
  folders = _folders(folder)
  for name in names:
    if name not in folders:
      present = ', '.join(folders[:8] + ['...'] * (len(folders) > 8)) or 'no folders'
      raise errors.ConfigError(f'config.data.{field}: {name!r} is no folder of {folder}, which '
                               f'holds {present}; {_LAYOUT}')
  return names


def _folders(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith('.'))


def _list_split(folder: pathlib.Path, split: str) -> Classes:
  files = {label: [f'{split}/{label}/{name}' for name in os.listdir(folder / split / label)
                   if name.lower().endswith(SUFFIXES) and not name.startswith('.')]
           for label in _folders(folder / split)}
  for label, names in files.items():
    if not names:
      raise errors.ConfigError(f'config.data.folder: {folder / split / label} holds no image '
                               f'({", ".join(SUFFIXES)}); add some, or remove it; {_LAYOUT}')
  return files


def _check_classes(
    folder: pathlib.Path, train: str, classes: Sequence[str], files: dict[str, Classes]) -> None:
  for split, labels in files.items():
    for label in labels:
      if label not in classes:
        close = [ascii(name) for name in classes if looks(name) == looks(label)]
        remedy = (f'; {ascii(label)} is not {" or ".join(close)}: give them one name' if close else
                  '; add images to train with, or remove it')
        raise errors.ConfigError(f'config.data.folder: {folder / split / label} is a class that '
                                 f'{folder / train} lacks{remedy}')
    if not labels:
      raise errors.ConfigError(f'config.data.folder: {folder / split} holds no classes; {_LAYOUT}')
  if len(classes) < 2:
    raise errors.ConfigError(f'config.data.folder: {folder / train} holds one class, '
                             f'{classes[0]!r}; at least two are needed; {_LAYOUT}')


def _mixed(split: str, files: Classes) -> list[str]:
  """Returns all files of a split, in the order in which TFDS would write them."""
  hasher = hashing.Hasher(split)
  return sorted((name for names in files.values() for name in names),
                key=lambda name: hasher.hash_key(os.fsencode(name.partition('/')[2])))


def _image_files(
    folder: pathlib.Path, names: Iterable[str], labels: dict[str, int],
    faults: dict[pathlib.Path, str]) -> Iterator[ImageFile]:
  """Yields the regular files that have room in memory; adds all others to `faults`.

  To open what is no regular file might wait for ever.

  Raises:
    DataError: the system cannot tell what a file is.
  """
  for name in names:
    try:
      found = status(folder / name)
    except OSError as error:
      raise _unreadable(folder / name, error) from error
    if not (found and stat.S_ISREG(found.st_mode)):  # Such as a link to nothing.
      faults[folder / name] = images.fault(ValueError())
    elif found.st_size > _MAX_BYTES:
      faults[folder / name] = f'larger than {_MAX_BYTES >> 20} MiB, the limit for an image file'
    else:
      yield ImageFile(name, labels[name.split('/')[1]], found.st_size, found.st_mtime_ns)


def _common_size(
    paths: Iterable[pathlib.Path], faults: dict[pathlib.Path, str]
) -> tuple[int | None, int | None]:
  """Returns height and width of all images, None if they differ; adds what is none to `faults`.

  It stops at the first image that differs, unless there are faults, which are all looked for.

  Raises:
    DataError: an image was removed, or cannot be read.
  """
  sizes = set()
  for path in paths:
    try:
      sizes.add(images.read_size(path))
    except Exception as error:  # PIL raises many kinds.
      faults[path] = _fault(path, error)
    if len(sizes) > 1 and not faults:
      break
  return sizes.pop() if len(sizes) == 1 else (None, None)


def _fault(path: pathlib.Path, error: Exception) -> str:
  """Returns what is wrong with an image file, by the error that was raised when it was read.

  Raises:
    DataError: nothing is known to be wrong with it, because it is gone, or cannot be read now.
  """
  if isinstance(error, OSError | MemoryError):
    raise _unreadable(path, error) from error
  return images.fault(error)


def _unreadable(path: pathlib.Path, error: Exception) -> errors.DataError:
  number = system_error(error)
  if number is None:  # It is gone, or a folder.
    return _changed(path)
  return errors.DataError(
      f'config.data.folder: {path} cannot be read ({os.strerror(number)}); make it readable, or '
      'run the same command again')


def _changed(path: pathlib.Path) -> errors.DataError:
  return errors.DataError(f'config.data.folder: {path} was changed or removed while the program '
                          'was running; run the same command again')
