"""Finding, describing and preparing a data set: any of TFDS, kdih's own, a folder of images."""
import contextlib
import functools
import io
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ml_collections
import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, dataset_builder, naming

from kdih import errors
from kdih.data import digits, image_folder, images, prepared, staging, tiny_imagenet
from kdih.data.image_folder import ImageFolder
from kdih.data.spec import DataSpec
from kdih.runtime.files import is_remote, locked

logger = logging.getLogger(__name__)

DataSet: TypeAlias = tfds.core.DatasetBuilder | ImageFolder

_MAX_CLASSES = 10**6
_NAMED = 8  # The number of data sets that a line names.


def open_builder(data: ml_collections.ConfigDict, *, stage: bool = True) -> DataSet:
  """Opens the data set that `config.data` names; downloads and prepares nothing.

  Args:
    data: `config.data`.
    stage: whether to copy a data set on an object store to the local disk, where it has to be to
      be read.

  Raises:
    ConfigError: there is no such data set, config or version, or its folder is not laid out as one
      of images.
    DataError: its folder holds a file that is no image or is damaged, or its object store cannot be
      read.
  """
  if data.name == ImageFolder.name:
    return image_folder.open_folder(data)
  if data.folder:
    raise errors.ConfigError(f'config.data.folder: is {data.folder!r}, which config.data.name '
                             f'{data.name!r} does not read; set config.data.name=image_folder')
  return _open_of_tfds(data, stage)


def _open_of_tfds(data: ml_collections.ConfigDict, stage: bool) -> tfds.core.DatasetBuilder:
  asked = prepared.asked(data.name)
  root = data.data_dir or constants.DATA_DIR
  if is_remote(data.data_dir):
    root = (staging.stage if stage else staging.staged)(data.data_dir, asked.dataset_name)
  if asked.namespace:  # TFDS knows where those are and by which code they are prepared.
    return _of_code(functools.partial(tfds.builder, data.name, try_gcs=False), data.name, root)
  code = _code(asked.dataset_name)
  config = asked.config or _default_config(code, root, asked.dataset_name)
  versions = _versions(code, config)
  found = prepared.find(root, asked.dataset_name)
  # What is prepared is opened as it is on the disk, in the version of TFDS's code unless one is
  # asked for.
  folder = prepared.folder_of(
      found, config, asked.version or (str(versions[0]) if versions else None))
  if folder:
    return prepared.open_folder(folder)
  if code is None and not found:
    raise _unknown(data.name)
  if code is None or not any(asked.version is None or version.match(asked.version)
                             for version in versions):
    raise _missing(asked, code, data.data_dir or root, found)
  if is_remote(data.data_dir) and stage:
    raise errors.DataError(
        f'config.data.data_dir: there is no {asked.tfds_name()} in {data.data_dir}'
        f'{_holding(asked.dataset_name, found)}; prepare it on a local disk and copy it there')
  make: Any = code
  return _of_code(functools.partial(make, config=config, version=asked.version), data.name, root)


def _code(name: str) -> type[tfds.core.DatasetBuilder] | None:
  """Returns the class by which TFDS or kdih prepares a data set; None if there is none."""
  try:
    return tfds.builder_cls(name)
  except tfds.core.registered.DatasetNotFoundError:
    return None


def _default_config(
    code: type[tfds.core.DatasetBuilder] | None, root: Any, dataset: str
) -> str | None:
  """Returns the config of which a name without a config speaks; None if there are no configs."""
  if code is None:
    return prepared.default_config(root, dataset)
  config: Any = code.default_builder_config
  return config.name if config else None


def _versions(
    code: type[tfds.core.DatasetBuilder] | None, config: str | None
) -> list[tfds.core.Version]:
  """Returns the versions of a config that the code prepares, its own choice first."""
  if code is None:
    return []
  configs = [known for known in code.BUILDER_CONFIGS if known.name == config]
  if not (configs or config or code.BUILDER_CONFIGS):
    configs = [None]
  return [tfds.core.Version(version) for known in configs for version in (
      dataset_builder.canonical_version_for_config(code, known),
      *(known and known.supported_versions or code.SUPPORTED_VERSIONS))]


def _of_code(
    make: Callable[..., tfds.core.DatasetBuilder], name: str, root: Any
) -> tfds.core.DatasetBuilder:
  try:
    return make(data_dir=root)
  except Exception as error:  # TFDS raises many kinds.
    raise errors.ConfigError(
        f'config.data.name: TFDS cannot open {name!r}: {errors.first_line(error)}; if it is '
        'prepared in config.data.data_dir and damaged, remove it there') from error


def _unknown(name: str) -> errors.ConfigError:
  own = [kind.name for kind in (digits.Digits, tiny_imagenet.TinyImagenet, ImageFolder)]
  close = errors.closest(name, [*own, *tfds.list_builders(with_community_datasets=False)])
  return errors.ConfigError(
      f'config.data.name: unknown {name!r}; {close}give the name of a TFDS data set, such '
      f'as cifar100, or one of {", ".join(own)}')


def _missing(
    asked: naming.DatasetReference, code: type[tfds.core.DatasetBuilder] | None, root: Any,
    found: prepared.Found,
) -> errors.ConfigError:
  """Returns the error for a config or version that is neither on the disk nor can be prepared."""
  can = ''
  if code:
    known = sorted({(config and config.name, version)
                    for config in code.BUILDER_CONFIGS or (None,)
                    for version in _versions(code, config and config.name)})
    can = ', and TFDS can prepare ' + _listed([
        naming.DatasetReference(code.name, config=config, version=version).tfds_name()
        for config, version in known])
  return errors.ConfigError(f'config.data.name: there is no {asked.tfds_name()} in '
                            f'{root}{_holding(asked.dataset_name, found)}{can}; name one of these')


def _holding(dataset: str, found: prepared.Found) -> str:
  """Returns ', which holds NAME, NAME' for what is prepared; '' if nothing is."""
  return f', which holds {_listed(prepared.names(dataset, found))}' if found else ''


def _listed(names: Sequence[str]) -> str:
  return ', '.join([*names[:_NAMED], *['...'] * (len(names) > _NAMED)])


def describe(builder: DataSet, data: ml_collections.ConfigDict) -> DataSpec:
  """Returns shapes and classes by the data set's metadata; reads no example.

  Raises:
    ConfigError: a key names no image or no class, the images differ in size or are not uint8, or
      there are fewer than two classes.
    DataError: the number of names of classes is not that of classes.
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
  if label.num_classes and label.num_classes > _MAX_CLASSES:  # Each has a name, in memory.
    raise errors.ConfigError(
        f'config.data.label_key: {data.label_key!r} of {data.name} has {label.num_classes:,} '
        f'classes; at most {_MAX_CLASSES:,} are possible; choose another feature')
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
  return DataSpec(data.name, (height, width, channels), label.num_classes,
                  _names(label, data))


def _names(label: tfds.features.ClassLabel, data: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns the classes' names; () if they have none, for which TFDS returns '0', '1', ..."""
  names = tuple(map(errors.printable, label.names))
  if len(names) != label.num_classes:
    raise errors.DataError(
        f'config.data.label_key: the file {data.label_key}.labels.txt of {data.name} has '
        f'{len(names)} lines for {label.num_classes} classes; give each class one line')
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
    raise errors.DataError(
        f'config.data.name: {_full_name(builder)} is not prepared in {builder.data_dir_root}'
        f'{_others(builder)} and {unreachable} does not answer; {_remedy(builder)}')
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
  return builder if isinstance(builder, ImageFolder) else prepared.open_folder(builder.data_dir)


def _alone_in(folder: Any) -> contextlib.AbstractContextManager:
  """Returns a context in which no other process prepares data sets in `folder`."""
  if is_remote(folder):  # TFDS's default may be on an object store, which has no locks.
    return contextlib.nullcontext()
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder):  # The lock waits for ever where no file can be made.
    pass
  return locked(folder / '.kdih.lock', waiting='data: waits for another process that prepares data')


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  verb = 'downloading and preparing' if builder.url_infos else 'preparing'
  name = _full_name(builder)
  logger.info(f'data: {verb} {name}, once, in {builder.data_dir_root}{_others(builder)}')
  folder = builder.data_path
  for path in folder.parent.iterdir() if folder.parent.exists() else ():
    if path.name.startswith(constants.INCOMPLETE_PREFIX) and path.name.endswith(f'_{folder.name}'):
      path.rmtree()  # A killed process has left it.
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS always prints that it downloads.
      builder.download_and_prepare(file_format='array_record')
  except Exception as error:
    reason = errors.first_line(error).rstrip(':')
    raise errors.DataError(f'config.data.name: TFDS could not prepare {name} ({reason}); '
                           f'{_remedy(builder)}') from error


def _full_name(builder: tfds.core.DatasetBuilder) -> str:
  """Returns the name with config and version, such as 'emnist/letters:3.1.0'."""
  return builder.get_reference().tfds_name()


def _others(builder: tfds.core.DatasetBuilder) -> str:
  """Returns ', which holds NAME' for the other configs and versions that are prepared."""
  return _holding(builder.name, prepared.find(builder.data_dir_root, builder.name))


def _remedy(builder: tfds.core.DatasetBuilder) -> str:
  root = builder.data_dir_root
  if not builder.url_infos and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return f'to write it to another folder than {root}, set config.data.data_dir'
  program = ('import kdih.data.datasets, tensorflow_datasets as tfds; '
             f'tfds.builder("{_full_name(builder)}", data_dir={_quoted(root)})'
             '.download_and_prepare()')
  remedy = (f'prepare it where there is a network with `python -c {shlex.quote(program)}` and copy '
            f'{root}, or set config.data.data_dir')
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return (f'put the files into {_manual(builder)} that TFDS cannot download '
            f'({errors.in_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}), or set '
            'config.data.data_dir')
  names = [info.filename for info in builder.url_infos.values() if info.filename]
  if not names or len(names) > 3:  # TFDS lists the files of every version and variant.
    return remedy
  return f'put {", ".join(names)} into {_manual(builder)}, or {remedy}'


def _quoted(path: Any) -> str:
  """Returns a path as a Python text in double quotes, which stand between a shell's single ones."""
  return json.dumps(str(path), ensure_ascii=False)


def _manual(builder: tfds.core.DatasetBuilder) -> Any:
  """Returns the folder in which TFDS looks for files that a user has downloaded."""
  return builder.data_dir_root / 'downloads' / 'manual'


def _unreachable(builder: tfds.core.DatasetBuilder, timeout: float) -> str | None:
  """Returns the address to download from, if it does not answer; None if none is needed."""
  infos = builder.url_infos or {}
  at_hand = any(info.filename and (_manual(builder) / info.filename).exists()
                for info in infos.values())
  url = next(iter(infos), None)
  # What the user has to download by hand, TFDS looks for before it downloads anything.
  if url is None or at_hand or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return None
  try:
    requests.head(url, timeout=timeout, allow_redirects=True)
  except requests.RequestException:
    return url
  return None
