"""Data sets that TFDS has prepared in a folder: which there are, and opening one after a check.

The files of a prepared data set name the types of its features, and TFDS imports the module of a
type that it does not know. The files may come from anyone: they are checked before TFDS opens them.
"""
import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, naming

from kdih import errors
from kdih.runtime import files, run_files

# By version, by config; data sets without configs have the config ''.
Found = dict[str, dict[tfds.core.Version, epath.Path]]

_VERSION = re.compile(r'(\d+|\*)(\.(\d+|\*)){2}')
_OWN_TYPE = re.compile(r'tensorflow_datasets\.core\.features(\.\w+)+')
_TYPE_KEYS = ('pythonClassName', 'python_class_name', 'type')  # 'type' until TFDS 4.5.
_INFO, _FEATURES = constants.DATASET_INFO_FILENAME, constants.FEATURES_FILENAME


class _Common(msgspec.Struct):
  """The description of all configs of a data set."""

  default_config_name: str | None = None


def asked(name: str) -> naming.DatasetReference:
  """Returns the data set, config and version that `config.data.name` asks for.

  Args:
    name: such as 'emnist', 'emnist/letters', 'emnist/letters:3.1.0' or 'emnist/letters/3.1.0'.

  Raises:
    ConfigError: it is no such name.
  """
  try:
    # TFDS itself prints names with '/' before the version, which it would take for a config.
    found, options = naming.parse_builder_name_kwargs(re.sub(r'/(\d+\.\d+\.\d+)$', r':\1', name))
    config, version = (options.pop(key, None) for key in ('config', 'version'))
    if options or not (version is None or _VERSION.fullmatch(str(version))):
      raise ValueError('it has arguments')
    return naming.DatasetReference(
        dataset_name=found.name, namespace=found.namespace, version=version,
        config=None if config is None else str(config))
  except ValueError as error:
    raise errors.ConfigError(
        f'config.data.name: {name!r} is no name of a data set; give one such as cifar100, '
        'emnist/letters or emnist/letters:3.1.0') from error


def find(root: epath.PathLike, dataset: str) -> Found:
  """Lists what is prepared of a data set, with all its configs and versions.

  Args:
    root: the folder of all data sets, `config.data.data_dir`.
    dataset: its name.

  Raises:
    DataError: the folder cannot be listed, or what is in it cannot be looked at now.
  """
  folder = epath.Path(root).expanduser() / dataset
  try:
    inside = list(folder.iterdir()) if files.is_folder(folder) else []
    places = {'': folder} | {path.name: path for path in inside if not path.name.startswith('.')
                             and not tfds.core.Version.is_valid(path.name)}
    found = {config: _prepared_in(place) for config, place in sorted(places.items())}
  except OSError as error:
    raise errors.DataError(f'config.data.data_dir: {folder} cannot be read '
                           f'({errors.first_line(error)}); make it readable, or choose another '
                           'folder') from error
  return {config: versions for config, versions in found.items() if versions}


def _prepared_in(place: epath.Path) -> dict[tfds.core.Version, epath.Path]:
  """Returns the folders of the prepared versions, except those that this user may not read.

  Raises:
    OSError: the system cannot tell now which there are.
  """
  found = {}
  # A file may lie beside the folders.
  with contextlib.suppress(PermissionError, FileNotFoundError, NotADirectoryError):
    for path in place.iterdir():
      with contextlib.suppress(PermissionError):
        if tfds.core.Version.is_valid(path.name) and files.exists(path / _INFO):
          found[tfds.core.Version(path.name)] = path
  return found


def names(dataset: str, found: Found) -> list[str]:
  """Returns the full names of all that `find` lists, such as 'emnist/letters:3.1.0'."""
  return [naming.DatasetReference(dataset, config=config, version=version).tfds_name()
          for config, versions in found.items() for version in sorted(versions)]


def folder_of(found: Found, config: str | None, version: str | None) -> epath.Path | None:
  """Returns the folder of the highest version that fits, or None.

  Args:
    found: from `find`.
    config: None stands for no config.
    version: exact or a pattern such as '3.*.*'; None for any.
  """
  fitting = {number: path for number, path in found.get(config or '', {}).items()
             if version is None or number.match(version)}
  return fitting[max(fitting)] if fitting else None


def default_config(root: epath.PathLike, dataset: str) -> str | None:
  """Returns the default config that the files of a data set name, if they name one."""
  path = epath.Path(root).expanduser() / dataset / '.config' / constants.METADATA_FILENAME
  return (run_files.read(path, _Common) or {}).get('default_config_name')


def open_folder(folder: epath.PathLike) -> tfds.core.DatasetBuilder:
  """Opens a prepared data set; runs none of the code that its files may name.

  Raises:
    DataError: its files are damaged, or name a type of feature that is not TFDS's own.
  """
  folder = epath.Path(folder)
  try:
    _check_types(folder)
    prepared = tfds.builder_from_directory(folder)
    if not prepared.info.splits:
      raise ValueError('it names no splits')
    if not isinstance(prepared.info.features, tfds.features.FeaturesDict):
      raise ValueError('its features have no names')
    return prepared
  except (errors.DataError, errors.UnreadableError):
    raise
  except errors.FileError as error:
    raise damaged('the description', folder, ValueError(error.reason)) from error
  except Exception as error:  # TFDS raises many kinds.
    raise damaged('the description', folder, error) from error


def damaged(what: str, folder: Any, error: Exception) -> errors.DataError:
  """Returns the error for damage to a prepared data set, or for what cannot be read now.

  Args:
    what: the damaged part, such as 'the description'.
    folder: the folder of the data set.
    error: how the damage showed.
  """
  if number := files.system_error(error):
    return errors.DataError(
        f'config.data.name: {what} of the data set in {folder} cannot be read '
        f'({os.strerror(number)}); make it readable, or run the same command again')
  return errors.DataError(
      f'config.data.name: {what} of the data set in {folder} is damaged '
      f'({errors.first_line(error)}); put the folder back from a copy, or remove it to prepare the '
      'data set anew')


def _check_types(folder: epath.Path) -> None:
  """Raises an error if the files are none, or name a type of feature that is not TFDS's own."""
  if not files.is_remote(folder):  # An object store has files alone.
    for path in pathlib.Path(folder).iterdir():
      if not (path.is_file() or path.is_dir()):  # To open a FIFO might wait for ever.
        raise ValueError(f'{path.name} is no file')
  if not files.exists(folder / _FEATURES):
    raise ValueError(f'it lacks {_FEATURES}, which TFDS writes since 4.0')
  info, features = (run_files.read(folder / name, dict[str, Any]) for name in (_INFO, _FEATURES))
  for kind in _types([features, info.get('features')]):
    if not _OWN_TYPE.fullmatch(kind):
      raise errors.DataError(
          f'config.data.name: the data set in {folder} has a feature of the type {kind[:200]!r}, '
          'which TFDS would import and run; prepare the data set with types of tfds.features')


def _types(content: Any) -> Iterator[str]:
  """Yields the names of types in the description of features, and in the JSON in its texts."""
  rest = [content]
  while rest:
    match rest.pop():
      case dict() as fields:
        yield from (value for key, value in fields.items()
                    if key in _TYPE_KEYS and isinstance(value, str))
        rest += fields.values()
      case list() as values:
        rest += values
      case str() as text:
        with contextlib.suppress(ValueError):  # It is no JSON, for the reader that TFDS uses, too.
          rest.append(json.loads(text))
