"""Every check of a config that needs no data: names, types and ranges of its fields."""
import math
from typing import Any

import ml_collections

from kdih import config_lib, errors, optimizer
from kdih.data import loaders, preprocess

PHASES = ('teacher', 'heads', 'student')
_CHOICES = {
    'dtype': ('float32', 'bfloat16'),
    'data.loader': tuple(loaders.LOADERS),
    'data.padding_mode': tuple(preprocess.PAD_MODES),
    'heads.kind': ('flatten', 'gap'),
}
_TRAIN_CHOICES = {
    'unit': optimizer.UNITS,
    'optimizer': optimizer.OPTIMIZERS,
    'schedule': optimizer.SCHEDULES,
}
_FREE_FORM = ('teacher.kwargs', 'student.kwargs', 'methods')
# Field: (what its numbers must be, in words; the test).
_ABOVE_0 = ('above 0', lambda x: 0 < x < math.inf)
_FROM_0 = ('0 or more', lambda x: 0 <= x < math.inf)
_RANGES = {
    'seed': ('from 0 to 4294967295', lambda x: 0 <= x < 2**32),
    'log_every_steps': _ABOVE_0,
    'data.image_size': _FROM_0,
    'data.padding': _FROM_0,
    'data.std': _ABOVE_0,
    'data.mean': ('finite', math.isfinite),
    'data.validation_fraction': ('from 0 to less than 1', lambda x: 0 <= x < 1),
    'data.validation_seed': _FROM_0,
    'data.eval_global_batch_size': _ABOVE_0,
    'sweep.seeds': ('from 0 to 4294967295', lambda x: 0 <= x < 2**32),
}
_TRAIN_RANGES = {
    'length': _ABOVE_0, 'evaluate_every': _ABOVE_0, 'global_batch_size': _ABOVE_0,
    'learning_rate': _ABOVE_0, 'decay': _ABOVE_0, 'momentum': ('from 0 to less than 1',
                                                               lambda x: 0 <= x < 1),
    'weight_decay': _FROM_0, 'warmup': _FROM_0, 'milestones': _ABOVE_0,
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for the first field that is unknown, of a wrong type or out of range."""
  _check_fields(config, config_lib.base(), '')
  for name, choices in _CHOICES.items():
    _check_choice(name, _get(config, name), choices)
  for name, (words, test) in _RANGES.items():
    _check_range(name, _get(config, name), words, test)
  for name, train in trainings(config):
    _check_train(name, train)
  _check_names('phases', config.phases, PHASES)
  _check_names('student.methods', config.student.methods, config.methods)


def trainings(config: ml_collections.ConfigDict) -> list[tuple[str, ml_collections.ConfigDict]]:
  """Every group of fields that says how something trains, by its name."""
  return [*((f'{phase}.train', config[phase].train) for phase in PHASES),
          ('student.prepare', config.student.prepare)]


def _check_fields(config: Any, reference: Any, prefix: str) -> None:
  for key in config:
    if key not in reference:
      raise errors.unknown(f'config.{prefix}{key}', key, reference)
  for key, default in reference.items():
    name = prefix + key
    if key not in config:
      raise errors.ConfigError(f'config.{name}: is missing; its default is {default!r}')
    value = config[key]
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise errors.ConfigError(f'config.{name}: is {value!r}; it must hold fields of its own')
      if name not in _FREE_FORM:
        _check_fields(value, default, f'{name}.')
    elif not _same_type(value, default):
      raise errors.ConfigError(f'config.{name}: {value!r} is not of type {_type_name(default)}; '
                               f'such as {default!r}')


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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise errors.unknown(f'config.{name}', value, choices)


def _check_range(name: str, value: Any, words: str, test: Any) -> None:
  for number in value if isinstance(value, tuple | list) else (value,):
    if not test(number):
      raise errors.ConfigError(f'config.{name}: is {number}; it must be {words}')


def _check_names(name: str, value: Any, choices: Any) -> None:
  for item in value:
    if item not in choices:
      raise errors.unknown(f'config.{name}', item, choices)
  if not value or len(set(value)) < len(value):
    raise errors.ConfigError(f'config.{name}: is {tuple(value)!r}; name each wanted one once')


def _check_train(name: str, train: ml_collections.ConfigDict) -> None:
  for field, choices in _TRAIN_CHOICES.items():
    _check_choice(f'{name}.{field}', train[field], choices)
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
