"""Finding, describing and preparing a data set: any of TFDS, kdih's own, a folder of images."""
import contextlib
import io
import logging
import sys
from typing import Any

import filelock
import ml_collections
import numpy as np
import requests
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import digits, image_folder, images, staging, tiny_imagenet
from kdih.data.spec import DataSpec
from kdih.runtime.files import is_remote

logger = logging.getLogger(__name__)


def open_builder(
    data: ml_collections.ConfigDict, *, stage: bool = True
) -> tfds.core.DatasetBuilder:
  """Returns the TFDS builder that `config.data` names; nothing is downloaded or written.

  Args:
    data: `config.data`.
    stage: whether a data set on an object store is copied to the local disk first, all the same.

  Raises:
    ConfigError: there is no such data set, or its folder does not serve.
    DataError: its folder holds a file that is no image.
  """
  if data.name == image_folder.ImageFolder.name:
    if is_remote(data.data_dir):
      raise errors.ConfigError(f'config.data.data_dir: is {data.data_dir!r}, and images of a '
                               'folder are written to a local disk; name a folder there')
    return image_folder.open_folder(data)
  if data.folder:
    raise errors.ConfigError(f'config.data.folder: is {data.folder!r}, which config.data.name '
                             f'{data.name!r} does not read; set config.data.name=image_folder')
  data_dir = data.data_dir or None
  if is_remote(data.data_dir):
    data_dir = (staging.staged(data.data_dir, data.name) if stage
                else str(staging.folder(data.data_dir)))
  try:
    return tfds.builder(data.name, data_dir=data_dir, try_gcs=False)
  except tfds.core.registered.DatasetNotFoundError:
    close = errors.closest(data.name, tfds.list_builders(with_community_datasets=False))
    own = (digits.Digits, tiny_imagenet.TinyImagenet, image_folder.ImageFolder)
    raise errors.ConfigError(
        f'config.data.name: unknown {data.name!r}; {close}give the name of a TFDS data set, such '
        f'as cifar100, or one of {", ".join(builder.name for builder in own)}') from None
  except Exception as error:  # TFDS raises many kinds for a bad version or config name.
    raise errors.ConfigError(f'config.data.name: TFDS cannot open {data.name!r}: '
                             f'{errors.first_line(error)}; if it is prepared in '
                             'config.data.data_dir and damaged, remove it there') from error


def describe(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> DataSpec:
  """Returns shapes and classes from the data set's metadata, before anything is read.

  Raises:
    ConfigError: a key that is no image or no class, images of several sizes or of other numbers
      than uint8, fewer than two classes.
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
  """Returns those of the classes; () where TFDS calls them '0', '1', ... for want of names."""
  names = tuple(label.names)
  return () if names == tuple(map(str, range(len(names)))) else names


def _feature(builder, field: str, key: str, kind: type) -> Any:
  features = builder.info.features
  if key not in features:
    raise errors.unknown(f'config.data.{field}', key, features)
  if not isinstance(features[key], kind):
    raise errors.ConfigError(f'config.data.{field}: {key!r} is not a {kind.__name__} feature')
  return features[key]


def prepare(
    builder: tfds.core.DatasetBuilder, timeout: float = 5.0
) -> tfds.core.DatasetBuilder:
  """Downloads and prepares the data set where that has not been done; one process at a time.

  Files that lie in `<data_dir>/downloads/manual` are not downloaded.

  Returns:
    The builder to read with: another one, if another process has prepared the data set meanwhile.

  Raises:
    DataError: it is not prepared, and its source does not answer within `timeout` seconds or
      TFDS fails; the message says how to prepare it.
  """
  if builder.is_prepared():
    return builder
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


def reopen(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  """Returns a prepared data set as it is on disk.

  What `builder` itself knows is older where another process has prepared the data set.
  """
  return tfds.builder_from_directory(builder.data_dir)


def _alone_in(folder: Any) -> contextlib.AbstractContextManager:
  """Returns a context in which no other process prepares data; an object store has no locks."""
  if is_remote(folder):
    return contextlib.nullcontext()
  folder.mkdir(parents=True, exist_ok=True)
  return filelock.FileLock(folder / '.kdih.lock')


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  verb = 'downloading and preparing' if builder.url_infos else 'preparing'
  logger.info(f'data: {verb} {builder.name}, once, in {builder.data_dir}')
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads, always.
      builder.download_and_prepare(file_format='array_record')
  except errors.DataError:
    raise
  except Exception as error:
    reason = errors.first_line(error).rstrip(':')
    raise errors.DataError(f'config.data.name: TFDS could not prepare {builder.name} '
                           f'({reason}); {_remedy(builder)}') from error


def _remedy(builder: tfds.core.DatasetBuilder) -> str:
  root = builder.data_dir_root
  if not builder.url_infos:
    return f'config.data.data_dir chooses another folder than {root} to write it to'
  command = ('`python -c "import kdih.data.datasets, tensorflow_datasets as tfds; '
             f"tfds.builder('{builder.name}', data_dir={str(root)!r}).download_and_prepare()\"`")
  remedy = (f'prepare it where there is a network with {command} and copy {root}, or set '
            'config.data.data_dir')
  names = [info.filename for info in builder.url_infos.values() if info.filename]
  if len(names) > 3:  # Those of every version and variant.
    return remedy
  return f'put {", ".join(names)} into {_manual(builder)}, or {remedy}'


def _manual(builder: tfds.core.DatasetBuilder) -> Any:
  """Returns where TFDS looks for files that a user has downloaded."""
  return builder.data_dir_root / 'downloads' / 'manual'


def _unreachable(builder: tfds.core.DatasetBuilder, timeout: float) -> str | None:
  """Returns the address of the source, if it is needed and does not answer."""
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
