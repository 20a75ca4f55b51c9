"""Every check of a config that needs no data: names, types and ranges of its fields."""
import re
import reprlib
import sys
from typing import Any

import ml_collections

from kdih import errors
from kdih.config import choices, fields
from kdih.errors import in_line

_CHOICES = {
    'dtype': choices.DTYPES,
    'on_nan': choices.ON_NAN,
    'data.loader': choices.LOADERS,
    'data.padding_mode': choices.PADDING_MODES,
    'sweep.together_by': choices.TOGETHER_BY,
    'heads.kind': choices.HEAD_KINDS,
    'compute.teacher_dtype': ('', *choices.DTYPES),
    'compute.cache_place': choices.CACHE_PLACES,
}
_TRAIN_CHOICES = {
    'unit': choices.UNITS,
    'optimizer': choices.OPTIMIZERS,
    'schedule': choices.SCHEDULES,
}
_EXAMPLES = {'sweep.alphas': (0.1,), 'sweep.learning_rates': (0.1,)}  # Of defaults without any.
_FREE_FORM = ('teacher.kwargs', 'student.kwargs', 'methods')
_SET_ELSEWHERE = {'num_classes': 'the data set', 'dtype': 'config.dtype', 'setting': 'kdih',
                  'axis_name': 'config.sync_batch_norm', 'parent': 'flax', 'name': 'flax'}
# Field: (what its numbers must be, in words; the test).
_ABOVE_0 = ('above 0', lambda x: 0 < x <= sys.float_info.max)
_FROM_0 = ('0 or more', lambda x: 0 <= x <= sys.float_info.max)
_LASTING = ('above 0, and 10000000 at most', lambda x: 0 < x <= 10_000_000)
_RANGES = {
    'seed': ('from 0 to 4294967295', lambda x: 0 <= x < 2**32),
    'log_every_steps': _ABOVE_0,
    'max_rewinds': ('from 0 to 100', lambda x: 0 <= x <= 100),
    'compute.steps_per_call': ('from 0 to 100000', lambda x: 0 <= x <= 100_000),
    'compute.prefetch': ('from 0 to 1000', lambda x: 0 <= x <= 1000),
    'compute.accumulate': _ABOVE_0,
    'distributed.timeout': _ABOVE_0,
    'data.image_size': ('from 0 to 16384', lambda x: 0 <= x <= 16384),
    'data.padding': ('from 0 to 1024', lambda x: 0 <= x <= 1024),
    'data.std': _ABOVE_0,
    'data.mean': ('finite', lambda x: abs(x) <= sys.float_info.max),
    'data.validation_fraction': ('from 0 to less than 1', lambda x: 0 <= x < 1),
    'data.validation_seed': _FROM_0,
    'data.order_seed': ('-1, or from 0 to 4294967295', lambda x: -1 <= x < 2**32),
    'data.eval_global_batch_size': _ABOVE_0,
    'sweep.seeds': ('from 0 to 4294967295', lambda x: 0 <= x < 2**32),
    'sweep.alphas': ('from 0 to 1', lambda x: 0 <= x <= 1),
    'sweep.learning_rates': _ABOVE_0,
}
_TRAIN_RANGES = {
    'length': _LASTING,
    'evaluate_every': _ABOVE_0,
    'global_batch_size': _LASTING,
    'learning_rate': _ABOVE_0,
    'decay': _ABOVE_0,
    'momentum': ('from 0 to less than 1', lambda x: 0 <= x < 1),
    'weight_decay': _FROM_0,
    'warmup': _FROM_0,
    'milestones': _ABOVE_0,
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for the first field that is unknown, of a wrong type or out of range."""
  _check_fields(config, fields.base(), '')
  _check_free_forms(config)
  for name, allowed in _CHOICES.items():
    _check_choice(name, _get(config, name), allowed)
  for name, (words, test) in _RANGES.items():
    _check_range(name, _get(config, name), words, test)
  _check_cache(config.compute.cache)
  for name, train in trainings(config):
    _check_train(name, train)
  _check_names('phases', config.phases, choices.PHASES)
  _check_names('student.methods', config.student.methods, config.methods)


def trainings(config: ml_collections.ConfigDict) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Every group of fields that says how something trains, by its name."""
  return [*((f'{phase}.train', config[phase].train) for phase in choices.PHASES),
          ('student.prepare', config.student.prepare)]


def _check_fields(config: Any, reference: Any, prefix: str) -> None:
  for key in config:
    if key not in reference:
      raise errors.unknown(f'config.{prefix}{in_line(key)}', key, reference)
  for key, default in reference.items():
    name = prefix + key
    if key not in config:
      raise errors.ConfigError(f'config.{name}: is missing; its default is {_shown(default)}')
    value = _read(config, key, name)
    default = _EXAMPLES.get(name, default)
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise errors.ConfigError(
            f'config.{name}: is {_shown(value)}; it must hold fields of its own')
      if name not in _FREE_FORM:
        _check_fields(value, default, f'{name}.')
    elif not _same_type(value, default):
      raise errors.ConfigError(f'config.{name}: {_shown(value)} is not of type '
                               f'{_type_name(default)}; such as {default!r}')


def _read(config: ml_collections.ConfigDict, key: str, name: str) -> Any:
  try:
    return config[key]
  except ml_collections.config_dict.RequiredValueError:
    raise errors.ConfigError(f'config.{name}: is not set') from None


def _check_free_forms(config: ml_collections.ConfigDict) -> None:
  for role in ('teacher', 'student'):
    for key in config[role].kwargs:
      setting = f'config.{role}.kwargs.{in_line(key)}'
      if key in _SET_ELSEWHERE:
        raise errors.ConfigError(f'{setting}: is set by {_SET_ELSEWHERE[key]}; remove it')
      _check_plain(_read(config[role].kwargs, key, setting), setting)
  for name in config.methods:
    setting = f'config.methods.{in_line(name)}'
    if not (isinstance(name, str) and re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_+=-]{0,99}', name)):
      raise errors.ConfigError(f'{setting}: names a folder; give it a name of letters, digits, and '
                               '_ + = -, 100 at most, the first one a letter or a digit')
    options = _read(config.methods, name, setting)
    if not isinstance(options, ml_collections.ConfigDict):
      raise errors.ConfigError(f'{setting}: is {_shown(options)}; it must hold fields of its own, '
                               "such as dict(kind='ce')")
    _check_plain(options, setting)


def _check_plain(value: Any, setting: str) -> None:
  """Raises ConfigError unless the value is one that JSON can keep."""
  if isinstance(value, ml_collections.ConfigDict | dict):
    for key in value:
      if not isinstance(key, str):
        raise errors.ConfigError(f'{setting}: {_shown(key)} is no name; it must be a text')
      _check_plain(_read(value, key, setting), f'{setting}.{in_line(key)}')
  elif isinstance(value, tuple | list):
    for item in value:
      _check_plain(item, setting)
  elif isinstance(value, int) and abs(value) >= 2**31:
    raise errors.ConfigError(f'{setting}: is {_shown(value)}; it must be below 2147483648')
  elif not (value is None or isinstance(value, bool | int | float | str)):
    raise errors.ConfigError(f'{setting}: {_shown(value)} is neither a number, nor a text, nor a '
                             'tuple or group of such')


def _shown(value: Any) -> str:
  return in_line(reprlib.repr(value))


def _same_type(value: Any, default: Any) -> bool:
  if isinstance(default, tuple):
    if not isinstance(value, tuple | list):
      return False
    element = default[0] if default else ''
    return all(_same_type(item, element) for item in value)
  if isinstance(default, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(default, bool)
  return isinstance(value, int | float if isinstance(default, float) else type(default))


def _type_name(default: Any) -> str:
  if not isinstance(default, tuple):
    return type(default).__name__
  return f'tuple of {type(default[0] if default else "").__name__}'


def _get(config: ml_collections.ConfigDict, name: str) -> Any:
  for part in name.split('.'):
    config = config[part]
  return config


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise errors.unknown(f'config.{name}', value, allowed)


def _check_range(name: str, value: Any, words: str, test: Any) -> None:
  for number in _as_tuple(value):
    if not test(number):
      raise errors.ConfigError(f'config.{name}: is {_shown(number)}; it must be {words}')


def _check_cache(cache: str) -> None:
  try:
    choices.fixed_views(cache)
  except ValueError as error:
    raise errors.ConfigError(f'config.compute.cache: {error}') from None


def _check_names(name: str, value: Any, allowed: Any) -> None:
  for item in value:
    if item not in allowed:
      raise errors.unknown(f'config.{name}', item, allowed)
  if not value or len(set(value)) < len(value):
    raise errors.ConfigError(f'config.{name}: is {_shown(tuple(value))}; name each wanted one once')


def _check_train(name: str, train: ml_collections.ConfigDict) -> None:
  for field, allowed in _TRAIN_CHOICES.items():
    _check_choice(f'{name}.{field}', train[field], allowed)
  for field, (words, test) in _TRAIN_RANGES.items():
    _check_range(f'{name}.{field}', train[field], words, test)
  for field in ('milestones', 'warmup'):
    for position in _as_tuple(train[field]):
      if position >= train.length:
        raise errors.ConfigError(
            f'config.{name}.{field}: {position:g} is not before the end; the phase lasts '
            f'{train.length:g} {train.unit} (config.{name}.length)')


def _as_tuple(value: Any) -> tuple:
  return tuple(value) if isinstance(value, tuple | list) else (value,)
