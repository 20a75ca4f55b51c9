"""Finding, describing and preparing a data set: any of TFDS, kdih's own, a folder of images."""
import contextlib
import io
import logging
import sys
from typing import Any, TypeAlias

import ml_collections
import numpy as np
import requests
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import digits, image_folder, images, staging, tiny_imagenet
from kdih.data.image_folder import ImageFolder
from kdih.data.spec import DataSpec
from kdih.runtime.files import is_remote, locked

logger = logging.getLogger(__name__)

DataSet: TypeAlias = tfds.core.DatasetBuilder | ImageFolder


def open_builder(data: ml_collections.ConfigDict, *, stage: bool = True) -> DataSet:
  """Opens the data set that `config.data` names; downloads and prepares nothing.

  Args:
    data: `config.data`.
    stage: whether to copy a data set on an object store to the local disk, where it has to be to
      be read.

  Raises:
    ConfigError: there is no such data set, or its folder is not laid out as one of images.
    DataError: its folder holds a file that is no image, or its object store cannot be read.
  """
  if data.name == ImageFolder.name:
    return image_folder.open_folder(data)
  if data.folder:
    raise errors.ConfigError(f'config.data.folder: is {data.folder!r}, which config.data.name '
                             f'{data.name!r} does not read; set config.data.name=image_folder')
  data_dir = data.data_dir or None
  if is_remote(data.data_dir):
    data_dir = (staging.stage if stage else staging.staged)(data.data_dir, data.name)
  try:
    return tfds.builder(data.name, data_dir=data_dir, try_gcs=False)
  except tfds.core.registered.DatasetNotFoundError:
    own = [kind.name for kind in (digits.Digits, tiny_imagenet.TinyImagenet, ImageFolder)]
    close = errors.closest(data.name, [*own, *tfds.list_builders(with_community_datasets=False)])
    raise errors.ConfigError(
        f'config.data.name: unknown {data.name!r}; {close}give the name of a TFDS data set, such '
        f'as cifar100, or one of {", ".join(own)}') from None
  except Exception as error:  # TFDS raises many kinds for a bad version or config name.
    raise errors.ConfigError(f'config.data.name: TFDS cannot open {data.name!r}: '
                             f'{errors.first_line(error)}; if it is prepared in '
                             'config.data.data_dir and damaged, remove it there') from error


def describe(builder: DataSet, data: ml_collections.ConfigDict) -> DataSpec:
  """Returns shapes and classes by the data set's metadata; reads no example.

  Raises:
    ConfigError: a key names no image or no class, the images differ in size or are not uint8, or
      there are fewer than two classes.
  """
  image = _feature(builder, 'image_key', data.image_key, tfds.features.Image)
  label = _feature(builder, 'label_key', data.label_key, tfds.features.ClassLabel)
  height, width, channels = image.shape
  setting = f'config.data.image_key: the images of {data.name}'
  if image.np_dtype != np.uint8:
    raise errors.ConfigError(f'{setting} are of {np.dtype(image.np_dtype).name}; uint8 is needed, '
                             '0 to 255; choose another feature, or prepare such a data set')
  if channels not in images.MODES:
    raise errors.ConfigError(f'{setting} have {channels or "no fixed number of"} channels; '
                             f'one of {", ".join(map(str, images.MODES))} is needed; choose '
                             'another feature')
  if (label.num_classes or 0) < 2:
    raise errors.ConfigError(
        f'config.data.label_key: {data.label_key!r} of {data.name} has {label.num_classes or "no"} '
        'classes; at least two are needed; choose another feature')
  if data.image_size:
    height = width = data.image_size
  if height is None or width is None:
    raise errors.ConfigError(
        f'config.data.image_size: the images of {data.name} differ in size; set the side in '
        'pixels to resize them to')
  for field in ('mean', 'std'):
    if len(data[field]) not in (1, channels):
      raise errors.ConfigError(
          f'config.data.{field}: has {len(data[field])} numbers for images of {channels} '
          f'channel{"s"[:channels > 1]}; give one for each channel, or one for all')
  return DataSpec(data.name, (height, width, channels), label.num_classes, _names(label))


def _names(label: tfds.features.ClassLabel) -> tuple[str, ...]:
  """Returns the classes' names; () if they have none, for which TFDS returns '0', '1', ..."""
  names = tuple(label.names)
  return () if names == tuple(map(str, range(len(names)))) else names


def _feature(builder: DataSet, field: str, key: str, kind: type) -> Any:
  features = builder.info.features
  if key not in features:
    raise errors.unknown(f'config.data.{field}', key, features)
  if not isinstance(features[key], kind):
    raise errors.ConfigError(f'config.data.{field}: {key!r} is not a {kind.__name__} feature')
  return features[key]


def prepare(builder: DataSet, timeout: float = 5.0) -> DataSet:
  """Downloads and prepares the data set, unless it is prepared; one process at a time.

  Files that lie in `<data_dir>/downloads/manual` are not downloaded.

  Returns:
    The data set to read. It is another object if another process has prepared the data set since
    `builder` was made, because `builder` then lacks its splits.

  Raises:
    DataError: it is not prepared, and its source does not answer within `timeout` seconds or
      TFDS fails; the message explains how to prepare it.
  """
  if isinstance(builder, ImageFolder):
    return builder
  if builder.is_prepared():
    return builder if builder.info.splits else reopen(builder)
  unreachable = _unreachable(builder, timeout)
  if unreachable:
    raise errors.DataError(f'config.data.name: {builder.name} is not prepared in '
                           f'{builder.data_dir_root} and {unreachable} does not answer; '
                           f'{_remedy(builder)}')
  try:
    with _alone_in(builder.data_dir_root):
      if builder.is_prepared():
        return reopen(builder)
      _prepare(builder)
  except OSError as error:
    raise errors.DataError(f'config.data.data_dir: {builder.data_dir_root} cannot be written to '
                           f'({errors.first_line(error)}); choose another folder') from error
  return builder


def reopen(builder: DataSet) -> DataSet:
  """Returns a prepared data set with the metadata that are on disk.

  Those of `builder` are incomplete if another process has prepared the data set since.

  Raises:
    DataError: the metadata are damaged.
  """
  if isinstance(builder, ImageFolder):
    return builder
  try:
    prepared = tfds.builder_from_directory(builder.data_dir)
    if not prepared.info.splits:
      raise ValueError('it names no splits')
    return prepared
  except Exception as error:  # TFDS raises many kinds.
    raise damaged('the description', builder.data_dir, error) from error


def damaged(what: str, folder: Any, error: Exception) -> errors.DataError:
  """Returns the error for damage to a prepared data set.

  Args:
    what: the damaged part, such as 'the description'.
    folder: the folder of the data set.
    error: how the damage showed.
  """
  return errors.DataError(
      f'config.data.name: {what} of the data set in {folder} is damaged '
      f'({errors.first_line(error)}); put the folder back from a copy, or remove it to prepare the '
      'data set anew')


def _alone_in(folder: Any) -> contextlib.AbstractContextManager:
  """Returns a context in which no other process prepares data sets in `folder`."""
  if is_remote(folder):  # TFDS's default may be on an object store, which has no locks.
    return contextlib.nullcontext()
  folder.mkdir(parents=True, exist_ok=True)
  return locked(folder / '.kdih.lock', waiting='data: waits for another process that prepares data')


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  verb = 'downloading and preparing' if builder.url_infos else 'preparing'
  logger.info(f'data: {verb} {builder.name}, once, in {builder.data_dir}')
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS always prints that it downloads.
      builder.download_and_prepare(file_format='array_record')
  except Exception as error:
    reason = errors.first_line(error).rstrip(':')
    raise errors.DataError(f'config.data.name: TFDS could not prepare {builder.name} '
                           f'({reason}); {_remedy(builder)}') from error


def _remedy(builder: tfds.core.DatasetBuilder) -> str:
  root = builder.data_dir_root
  if not builder.url_infos:
    return f'to write it to another folder than {root}, set config.data.data_dir'
  command = ('`python -c "import kdih.data.datasets, tensorflow_datasets as tfds; '
             f"tfds.builder('{builder.name}', data_dir={str(root)!r}).download_and_prepare()\"`")
  remedy = (f'prepare it where there is a network with {command} and copy {root}, or set '
            'config.data.data_dir')
  names = [info.filename for info in builder.url_infos.values() if info.filename]
  if len(names) > 3:  # TFDS lists the files of every version and variant.
    return remedy
  return f'put {", ".join(names)} into {_manual(builder)}, or {remedy}'


def _manual(builder: tfds.core.DatasetBuilder) -> Any:
  """Returns the folder in which TFDS looks for files that a user has downloaded."""
  return builder.data_dir_root / 'downloads' / 'manual'


def _unreachable(builder: tfds.core.DatasetBuilder, timeout: float) -> str | None:
  """Returns the address to download from, if it does not answer; None if none is needed."""
  infos = builder.url_infos or {}
  at_hand = any(info.filename and (_manual(builder) / info.filename).exists()
                for info in infos.values())
  url = next(iter(infos), None)
  if url is None or at_hand:
    return None
  try:
    requests.head(url, timeout=timeout, allow_redirects=True)
  except requests.RequestException:
    return url
  return None
