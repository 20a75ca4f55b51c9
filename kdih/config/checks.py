"""Checks the names, types and ranges of all fields of a config, without data or models."""
import re
from typing import Any

import ml_collections

from kdih import errors
from kdih.config.fields import FIELDS, TRAININGS, base
from kdih.config.values import check_plain, shown
from kdih.runtime import environment

_SET_ELSEWHERE = {'num_classes': 'the data set', 'dtype': 'config.dtype', 'setting': 'kdih',
                  'axis_name': 'config.sync_batch_norm', 'parent': 'flax', 'name': 'flax'}


def check(config: ml_collections.ConfigDict) -> None:
  """Checks every field of a config.

  Raises:
    ConfigError: a field is unknown or missing, or has a wrong value, or the folder of compiled
      programs cannot be used.
  """
  _check_group(config, base(), '')
  for role in ('teacher', 'student'):
    for key in config[role].kwargs:
      if key in _SET_ELSEWHERE:
        raise errors.ConfigError(f'config.{role}.kwargs.{errors.in_line(key)}: is set by '
                                 f'{_SET_ELSEWHERE[key]}; remove it')
  for name in config.methods:
    _check_method(config, name)
  for name, train in trainings(config):
    _check_positions(name, train)
  for group in ('student', 'sweep'):
    for name in config[group].methods:
      if name not in config.methods:
        raise errors.unknown(f'config.{group}.methods', name, config.methods)
  environment.compiled_folder(config.compute.compilation_cache)


def trainings(config: ml_collections.ConfigDict) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Returns (name, fields) of the groups by which phases train, such as 'teacher.train'."""
  return [(name, config[name.split('.')[0]][name.split('.')[1]]) for name in TRAININGS]


def _check_group(config: ml_collections.ConfigDict, reference: Any, prefix: str) -> None:
  """Checks the fields of a group and of the groups within it."""
  for key in config:
    if key not in reference:
      raise errors.unknown(f'config.{prefix}{errors.in_line(key)}', key, reference)
  for key, default in reference.items():
    name, field = prefix + key, FIELDS.get(prefix + key)
    if key not in config:
      raise errors.ConfigError(f'config.{name}: is missing in the config file; add it, its default '
                               f'is {shown(default)}')
    value = _read(config, key, f'config.{name}')
    if field:
      is_group = isinstance(value, ml_collections.ConfigDict)
      field.kind.check(f'config.{name}', _plain(value, f'config.{name}') if is_group else value)
    elif not isinstance(value, ml_collections.ConfigDict):
      raise errors.ConfigError(
          f'config.{name}: is {shown(value)}; it must be a group of fields')
    elif name != 'methods':
      _check_group(value, default, f'{name}.')


def _read(config: ml_collections.ConfigDict, key: Any, setting: str) -> Any:
  try:
    return config[key]
  except ml_collections.config_dict.RequiredValueError:
    raise errors.ConfigError(f'{setting}: has no value; set it in the config file or by '
                             f'--{setting}=VALUE') from None


def _plain(config: ml_collections.ConfigDict, setting: str) -> dict:
  """Returns a group of the user's own fields as nested dicts."""
  values = {key: _read(config, key, f'{setting}.{errors.in_line(key)}') for key in config}
  return {key: _plain(value, f'{setting}.{errors.in_line(key)}')
          if isinstance(value, ml_collections.ConfigDict) else value
          for key, value in values.items()}


def _check_method(config: ml_collections.ConfigDict, name: Any) -> None:
  """Checks an entry of `config.methods`, as far as that needs no code of the method."""
  setting = f'config.methods.{errors.in_line(name)}'
  if not (isinstance(name, str) and re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_+=-]{0,99}', name)):
    raise errors.ConfigError(
        f'{setting}: the name must be usable as the name of a folder; choose one of at most 100 '
        'letters, digits and characters _ + = -, which begins with a letter, a digit or _')
  options = _read(config.methods, name, setting)
  if not isinstance(options, ml_collections.ConfigDict):
    raise errors.ConfigError(f'{setting}: is {shown(options)}; it must be a group of fields, such '
                             "as dict(kind='ce')")
  check_plain(setting, _plain(options, setting))
  if 'kind' not in options:
    known = [other for other in config.methods if other != name]
    raise errors.ConfigError(
        f'{setting}.kind: is not set; {errors.closest(name, known)}set the kind and all options '
        'of your own method')


def _check_positions(name: str, train: ml_collections.ConfigDict) -> None:
  """Raises ConfigError unless the warmup, and the milestones if used, are within the phase."""
  for field in ('milestones', 'warmup') if train.schedule == 'piecewise' else ('warmup',):
    value = train[field]
    other = f', or config.{name}.schedule=cosine' if field == 'milestones' else ''
    for position in value if isinstance(value, tuple | list) else (value,):
      if position >= train.length:
        raise errors.ConfigError(
            f'config.{name}.{field}: {position:g} is not before the end of the phase, which lasts '
            f'{train.length:g} {train.unit}; choose a smaller number, or a larger '
            f'config.{name}.length{other}')
