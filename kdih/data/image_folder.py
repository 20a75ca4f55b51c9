"""Folders of image files, `split/class/*.jpg`, as a TFDS data set that is written once."""
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import images

SUFFIXES = ('.jpg', '.jpeg', '.png')
_LAYOUT = 'images lie in SPLIT/CLASS/, such as train/cat/1.jpg'

Classes = dict[str, list[pathlib.Path]]  # The image files of each class, sorted.
Stats = dict[pathlib.Path, os.stat_result]


def open_folder(data: ml_collections.ConfigDict) -> 'ImageFolder':
  """Returns the builder for `config.data.folder` and the splits that `config.data` names.

  Raises:
    ConfigError: there is no such folder or split, or their classes do not fit together.
    DataError: a file is no image.
  """
  if not data.folder:
    raise errors.ConfigError('config.data.folder: is not set; name the folder that holds your '
                             f'images; {_LAYOUT}')
  try:
    folder = pathlib.Path(data.folder).expanduser().absolute()
    train, test = (_splits(folder, field, data[field]) for field in ('train_split', 'test_split'))
    files = {split: _list_split(folder / split) for split in dict.fromkeys((*train, *test))}
  except (OSError, RuntimeError) as error:
    raise errors.ConfigError(
        f'config.data.folder: {data.folder} cannot be read ({errors.first_line(error)})') from error
  classes = sorted({label for split in train for label in files[split]})
  _check_classes(folder, train[0], classes, files)
  stats = {path: _read(pathlib.Path.stat, path) for path in _all(files)}
  try:
    return ImageFolder(folder, files, stats, classes, data.data_dir or None)
  except errors.DataError:
    raise
  except Exception as error:  # TFDS raises many kinds where its copy is damaged.
    raise errors.DataError(
        f'config.data.data_dir: what was prepared of {folder} is damaged '
        f'({errors.first_line(error)}); remove image_folder/{_copy_name(folder, stats)} there, and '
        'it is prepared anew') from error


def _splits(folder: pathlib.Path, field: str, split: str) -> list[str]:
  """Returns the folders that a split such as 'train[:90%]+more' is read from."""
  if not folder.is_dir():
    raise errors.ConfigError(f'config.data.folder: {folder} is no folder; {_LAYOUT}')
  names = [part.partition('[')[0].strip() for part in split.split('+')]
  folders = _folders(folder)
  for name in names:
    if name not in folders:
      found = ', '.join(folders[:8] + ['...'] * (len(folders) > 8)) or 'no folders'
      raise errors.ConfigError(
          f'config.data.{field}: {name!r} is no folder of {folder}, which holds {found}; {_LAYOUT}')
  return names


def _folders(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith('.'))


def _list_split(folder: pathlib.Path) -> Classes:
  files = {label: sorted(path for path in (folder / label).iterdir()
                         if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'))
           for label in _folders(folder)}
  for label, found in files.items():
    if not found:
      raise errors.ConfigError(f'config.data.folder: {folder / label} holds no image '
                               f'({", ".join(SUFFIXES)}); add some, or remove it; {_LAYOUT}')
  return files


def _check_classes(
    folder: pathlib.Path, train: str, classes: Sequence[str], files: dict[str, Classes]) -> None:
  for split, found in files.items():
    for label in found:
      if label not in classes:
        raise errors.ConfigError(f'config.data.folder: {folder / split / label} is a class that '
                                 f'{folder / train} lacks; add images to train with, or remove it')
    if not found:
      raise errors.ConfigError(f'config.data.folder: {folder / split} holds no classes; {_LAYOUT}')
  if len(classes) < 2:
    raise errors.ConfigError(f'config.data.folder: {folder / train} holds one class, '
                             f'{classes[0]!r}; at least two are needed; {_LAYOUT}')


class ImageFolder(tfds.core.GeneratorBasedBuilder):
  """Images of any size, turned upright and into RGB; classes are the folders' names, sorted.

  It is written to `<data_dir>/image_folder/<name>-<digest>/`: the digest is of the folder's path
  and of the name, size and modification time of every file, so that another folder, or a file
  that has changed, is written anew. Files of other kinds and hidden ones are left out.

  Args:
    folder: absolute.
    files: the images of every split.
    stats: of each of them.
    classes: all names of classes, sorted.
    data_dir: TFDS's folder for data sets, None for its default.

  Raises:
    DataError: a file is no image.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, folder: pathlib.Path, files: dict[str, Classes], stats: Stats,
               classes: Sequence[str], data_dir: str | None):
    self._folder = folder
    self._files = files
    self._stats = stats
    self._classes = classes
    config = tfds.core.BuilderConfig(
        name=_copy_name(folder, stats), description=f'The images in {folder}.')
    super().__init__(config=config, data_dir=data_dir)

  def sizes(self) -> dict[str, int]:
    """Returns {'SPLIT/CLASS/FILE': bytes} of every image, as found when the folder was opened."""
    return {path.relative_to(self._folder).as_posix(): stat.st_size
            for path, stat in self._stats.items()}

  def content(self, name: str, last: int = 0) -> bytes:
    """Reads a file that `sizes` names, or its `last` bytes. Raises DataError if it cannot."""
    return _read(lambda path: _content(path, last), self._folder / name)

  def _info(self) -> tfds.core.DatasetInfo:
    if self.is_prepared():  # Then the sizes need not be read again.
      features = tfds.features.FeaturesDict.from_config(self.data_dir)
    else:
      features = tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(*_common_size(self._files), 3)),
          'label': tfds.features.ClassLabel(names=self._classes),
          'file': tfds.features.Text(),
      })
    return self.dataset_info_from_configs(features=features, supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(files) for split, files in self._files.items()}

  def _generate_examples(self, files: Classes) -> Iterator:
    for label, paths in files.items():
      for path in paths:
        name = f'{label}/{path.name}'
        yield name, {'image': _read(_as_rgb, path), 'label': label, 'file': name}


def _all(files: dict[str, Classes]) -> Iterator[pathlib.Path]:
  return (path for classes in files.values() for paths in classes.values() for path in paths)


def _copy_name(folder: pathlib.Path, stats: Stats) -> str:
  name = re.sub(r'[^\w.-]', '_', folder.name)
  digest = hashlib.sha256()  # Of paths, which are absolute, sizes and times of modification.
  for path, stat in sorted(stats.items()):
    digest.update(os.fsencode(path) + f'\0{stat.st_size} {stat.st_mtime_ns}\0'.encode())
  return f'{name}-{digest.hexdigest()[:12]}'


def _common_size(files: dict[str, Classes]) -> tuple[int | None, int | None]:
  """Returns height and width of all images, None if they differ; stops at the first that does."""
  sizes = (_read(images.read_size, path) for path in _all(files))
  first = next(sizes)
  return first if all(size == first for size in sizes) else (None, None)


def _content(path: pathlib.Path, last: int) -> bytes:
  with path.open('rb') as file:
    if last:
      file.seek(-min(last, os.fstat(file.fileno()).st_size), os.SEEK_END)
    return file.read()


def _as_rgb(path: pathlib.Path) -> bytes:
  return images.to_rgb(path.read_bytes())


def _read(read: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
  try:
    return read(path)
  except Exception as error:  # PIL raises many kinds.
    raise errors.DataError(f'config.data.folder: {path} is damaged or no image; replace or remove '
                           'it') from error
