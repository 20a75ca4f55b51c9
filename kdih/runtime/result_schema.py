"""Result files as a comparison reads them: what is wrong with one is said in a line."""
import json
import math
import pathlib
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

from kdih import errors


class Kind(NamedTuple):
  """What a value must be, in words, and whether one is."""

  said: str
  fits: Callable[[Any], bool]


def _of(kind: type) -> Kind:
  return Kind(f'of type {kind.__name__}', lambda value: type(value) is kind)


_TEXT, _GROUP, _LIST = _of(str), _of(dict), _of(list)
_ANY = Kind('anything', lambda value: True)
_COUNT = Kind('a whole number, 0 or more',
              lambda value: type(value) is int and value >= 0)
_SHARE = Kind('a number from 0 to 1',
              lambda value: type(value) in (int, float) and 0 <= value <= 1)
_AMOUNT = Kind('a number, 0 or more',
               lambda value: type(value) in (int, float) and 0 <= value < math.inf)

# What a file must hold, by the names on the way to it; behind '?' it may be missing, or null.
Keys = dict[str, Kind]
MANIFEST = {'config.data.name': _TEXT, 'config.teacher.name': _TEXT, 'config.student.name': _TEXT,
            'config.heads?': _GROUP, 'config.methods?': _GROUP, 'versions?': _GROUP,
            'devices?': _LIST}
_MEASURED = {'test_last.top1': _SHARE, 'test_best_val.top1': _SHARE, 'parameters': _COUNT,
             'flops?': _COUNT, 'test_last.agreement?': _SHARE, 'test_best_val.agreement?': _SHARE}
TEACHER = {**_MEASURED, 'fingerprint': _TEXT}
STUDENT = {**_MEASURED, 'seed': _COUNT, 'method.kind': _TEXT, 'parts?': _GROUP,
           'protocol?': _GROUP,
           'identity?': _GROUP, 'identity?.computation?': _GROUP, 'identity?.data?': _TEXT,
           'identity?.teacher?': _GROUP, 'identity?.teacher?.variables?': _TEXT,
           'identity?.teacher?.heads?': _TEXT,
           'accepted?': _LIST, 'made_by?': _GROUP,
           'made_by?.versions?': _GROUP, 'made_by?.devices?': _LIST}
HEADS = {**_MEASURED, 'members': _GROUP, 'analysis?': _GROUP}
FAILURE = {'error': _TEXT}
_SWEEP = {
    'pairs': Kind('[teacher, student, methods] of each pair',
                  lambda value: type(value) is list and all(map(_is_pair, value))),
    'seeds': Kind('of type list, of whole numbers from 0',
                  lambda value: type(value) is list and all(map(_COUNT.fits, value))),
    'left_out?': _GROUP,
}


def _is_pair(value: Any) -> bool:
  if not (type(value) is list and len(value) == 3 and type(value[2]) is list):
    return False
  teacher, student, methods = value
  return (all(type(name) is str and _names_a_folder(name) for name in (teacher, student, *methods))
          and all('/' not in name for name in methods))


def _names_a_folder(name: str) -> bool:
  """Returns whether it leads nowhere else, once '/' of a model's name is replaced."""
  return name.replace('/', '').strip('.') != '' and name.isprintable()


class Unusable(Exception):
  """A file cannot be used; the message names it and says why."""


def read_result(path: pathlib.Path, keys: Keys) -> dict:
  """Reads as `read` does; 'val' must be there too, and may be None."""
  result = read(path, keys)
  _check(path, result, 'val', _ANY)
  _check(path, result, 'val?.top1', _SHARE)
  return result


def read(path: pathlib.Path, keys: Keys) -> dict:
  """Returns the content of a JSON file. Raises Unusable where it is broken or lacks a key."""
  content = _load(path)
  for key, kind in keys.items():
    _check(path, content, key, kind)
  return content


def read_sweep(path: pathlib.Path) -> list[dict]:
  """Returns what was asked of a sweep, command by command; [] where that is not told apart."""
  asked = _load(path)
  commands = asked if isinstance(asked, list) else []
  for command in commands:
    for key, kind in _SWEEP.items():
      _check(path, command, key, kind)
  return commands


def _load(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=_printable_group)
  except OSError as error:
    raise Unusable(f'{path}: cannot be read ({error.strerror})') from error
  except (ValueError, RecursionError) as error:
    raise Unusable(f'{path}: is not JSON ({error})') from error


def check_cohort(path: pathlib.Path, heads: dict) -> None:
  """Raises Unusable where an analysis is not as `kdih.cohort.analysis.analyse` makes it."""
  for name in heads['members']:
    _check(path, heads, ('members', name, 'test_last', 'top1'), _SHARE)
  _check(path, heads, 'analysis?.members', _GROUP)
  names = list((heads.get('analysis') or {'members': {}})['members'])
  for name in names:
    _check(path, heads, ('members', name), _GROUP)
    _check(path, heads, ('analysis', 'members', name, 'entropy'), _AMOUNT)
    _check(path, heads, ('analysis', 'members', name, 'ece'), _SHARE)
  _check(path, heads, 'analysis?.agreement?.names', Kind(repr(names), lambda value: value == names))
  _check(path, heads, 'analysis?.agreement?.matrix', _square(len(names)))
  _check(path, heads, 'analysis?.without?.none', _SHARE)
  _check(path, heads, 'analysis?.without?', Kind(
      'of numbers from 0 to 1', lambda shares: all(map(_SHARE.fits, shares.values()))))


def _square(size: int) -> Kind:
  def fits(rows: Any) -> bool:
    return type(rows) is list and len(rows) == size and all(
        type(row) is list and len(row) == size and all(map(_SHARE.fits, row)) for row in rows)
  return Kind(f'{size} rows of as many numbers from 0 to 1', fits)


def _check(path: pathlib.Path, content: Any, key: str | tuple[str, ...], kind: Kind) -> None:
  """Raises Unusable where the value at `key`, a tuple if names may hold '.', is not its kind."""
  names = key.split('.') if isinstance(key, str) else key
  said = key.replace('?', '') if isinstance(key, str) else '.'.join(key)
  for name in names:
    optional = isinstance(key, str) and name.endswith('?')
    name = name.removesuffix('?') if optional else name
    value = content.get(name) if isinstance(content, dict) else None
    if optional and value is None:
      return
    if not (isinstance(content, dict) and name in content):
      raise Unusable(f'{path}: {said!r} is missing')
    content = value
  if not kind.fits(content):
    raise Unusable(f'{path}: {said!r} is {reprlib.repr(content)}, and must be {kind.said}')


def _printable_group(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object whose names and texts can be shown anywhere."""
  return {errors.printable(name): errors.printable(value) if isinstance(value, str) else value
          for name, value in pairs}
