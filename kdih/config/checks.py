"""Every check of a config that needs neither data nor models: names, types and ranges of fields."""
import re
from typing import Any

import ml_collections

from kdih import errors
from kdih.config.fields import FIELDS, TRAININGS, base
from kdih.config.values import check_plain, shown

_SET_ELSEWHERE = {'num_classes': 'the data set', 'dtype': 'config.dtype', 'setting': 'kdih',
                  'axis_name': 'config.sync_batch_norm', 'parent': 'flax', 'name': 'flax'}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for the first field that is unknown, missing or has a wrong value."""
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
  for name in config.student.methods:
    if name not in config.methods:
      raise errors.unknown('config.student.methods', name, config.methods)


def trainings(config: ml_collections.ConfigDict) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Returns every group of fields that says how something trains, by its name."""
  return [(name, config[name.split('.')[0]][name.split('.')[1]]) for name in TRAININGS]


def _check_group(config: ml_collections.ConfigDict, reference: Any, prefix: str) -> None:
  """Checks the fields of a group, and of the groups in it."""
  for key in config:
    if key not in reference:
      raise errors.unknown(f'config.{prefix}{errors.in_line(key)}', key, reference)
  for key, default in reference.items():
    name, field = prefix + key, FIELDS.get(prefix + key)
    if key not in config:
      raise errors.ConfigError(f'config.{name}: is missing; its default is {shown(default)}')
    value = _read(config, key, f'config.{name}')
    if field:
      is_group = isinstance(value, ml_collections.ConfigDict)
      field.kind.check(f'config.{name}', _plain(value, f'config.{name}') if is_group else value)
    elif not isinstance(value, ml_collections.ConfigDict):
      raise errors.ConfigError(
          f'config.{name}: is {shown(value)}; it must hold fields of its own')
    elif name != 'methods':
      _check_group(value, default, f'{name}.')


def _read(config: ml_collections.ConfigDict, key: Any, setting: str) -> Any:
  try:
    return config[key]
  except ml_collections.config_dict.RequiredValueError:
    raise errors.ConfigError(f'{setting}: is not set') from None


def _plain(config: ml_collections.ConfigDict, setting: str) -> dict:
  """Returns a group of fields of one's own as nested dicts."""
  values = {key: _read(config, key, f'{setting}.{errors.in_line(key)}') for key in config}
  return {key: _plain(value, f'{setting}.{errors.in_line(key)}')
          if isinstance(value, ml_collections.ConfigDict) else value
          for key, value in values.items()}


def _check_method(config: ml_collections.ConfigDict, name: Any) -> None:
  """Checks what can be said of an entry of `config.methods` without its code."""
  setting = f'config.methods.{errors.in_line(name)}'
  if not (isinstance(name, str) and re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_+=-]{0,99}', name)):
    raise errors.ConfigError(f'{setting}: names a folder; give it a name of letters, digits, and '
                             '_ + = -, 100 at most, the first one a letter or a digit')
  options = _read(config.methods, name, setting)
  if not isinstance(options, ml_collections.ConfigDict):
    raise errors.ConfigError(f'{setting}: is {shown(options)}; it must hold fields of its own, '
                             "such as dict(kind='ce')")
  check_plain(setting, _plain(options, setting))
  if 'kind' not in options:
    known = [other for other in config.methods if other != name]
    raise errors.ConfigError(
        f'{setting}.kind: is not set; {errors.closest(name, known)}a method of your own needs a '
        'kind, and all its options')


def _check_positions(name: str, train: ml_collections.ConfigDict) -> None:
  """Raises ConfigError unless the milestones and the end of the warm-up lie within the phase."""
  for field in ('milestones', 'warmup'):
    value = train[field]
    for position in value if isinstance(value, tuple | list) else (value,):
      if position >= train.length:
        raise errors.ConfigError(
            f'config.{name}.{field}: {position:g} is not before the end of the phase, which lasts '
            f'{train.length:g} {train.unit}; choose less, or a larger config.{name}.length')
