"""Finished students, found in the folders of runs and sweeps; result files are all that is read."""
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from kdih.comparison import Run

# What a file must hold, by the names on the way to it.
_Keys = dict[str, type]
_MANIFEST = {'config.data.name': str, 'config.teacher.name': str, 'config.student.name': str,
             'config.student.kwargs': dict, 'config.student.train': dict,
             'config.student.prepare': dict, 'config.heads': dict, 'config.dtype': str,
             'config.sync_batch_norm': bool}
_MEASURED = {'test_last.top1': float, 'test_best_val.top1': float, 'parameters': int}
_TEACHER = {**_MEASURED, 'fingerprint': str}
_STUDENT = {**_MEASURED, 'seed': int, 'method.kind': str}
_HEADS = {**_MEASURED, 'members': dict}

_PHASES = ('teacher', 'heads', 'student')
# Fields of config.data that change no number.
_FREE = ('data_dir', 'loader', 'eval_global_batch_size')


class _Unusable(Exception):
  """A file cannot be used; the message names it and says why."""


def collect(paths: Iterable[str | os.PathLike]) -> tuple[list[Run], list[str]]:
  """All finished students in the given folders, and what is wrong with the others.

  Args:
    paths: each a run, a sweep, or a folder that holds several of them. A run in a sweep has the
      teacher and the heads of the folder two above.

  Returns:
    Runs sorted by path, given path by given path, each student once; and a line for each thing
    that is unfinished, failed, broken, or there twice with different numbers. Of the latter the
    first one is taken. Runs under different protocols are different runs.
  """
  found = _Collection()
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      found.note(f'{path}: there is no such folder')
      continue
    workdirs = list(_workdirs(path))
    for workdir in workdirs:
      found.read(workdir)
    if not any(_students(workdir) for workdir in workdirs):
      found.note(f'{path}: holds no student')
  return list(found.runs.values()), found.problems


def _workdirs(path: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder, names, _ in os.walk(path):
    here = pathlib.Path(folder)
    if (here / 'manifest.json').exists() or any(here.glob('student/*/result.json')):
      yield here
      names[:] = [name for name in names if name not in _PHASES]  # They are large.
    names[:] = sorted(name for name in names if not name.startswith('.'))


def _students(workdir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in workdir.glob('student/*') if path.is_dir())


class _Collection:
  """What has been found so far.

  Attributes:
    runs: by what tells them apart.
    problems: a line each, none twice.
  """

  def __init__(self):
    self.runs: dict[tuple, Run] = {}
    self.problems: list[str] = []

  def note(self, problem: str) -> None:
    """Adds a problem."""
    if problem not in self.problems:
      self.problems.append(problem)

  def read(self, workdir: pathlib.Path) -> None:
    """Adds the students of a workdir."""
    folders = _students(workdir)
    if not folders:
      return
    home = _home(workdir)
    try:
      config = _read(workdir / 'manifest.json', _MANIFEST)['config']
      teacher = self._phase(home / 'teacher', _TEACHER)
    except _Unusable as error:
      self.note(f'{error}; its students are left out')
      return
    heads = self._phase_if_usable(home / 'heads', _HEADS)
    for folder in folders:
      if result := self._phase_if_usable(folder, _STUDENT):
        self._add(Run(
            str(workdir), config['data']['name'], config['teacher']['name'],
            config['student']['name'], folder.name, result['seed'], _protocol(config, teacher),
            result, teacher, heads))

  def _phase(self, folder: pathlib.Path, keys: _Keys) -> dict | None:
    """The result of a phase; None where there is no such phase, or it is not finished."""
    if not folder.is_dir():
      return None
    if (folder / 'result.json').exists():
      return _with_validation(folder / 'result.json', keys)
    if (folder / 'failure.json').exists():
      self.note(f'{folder}: failed: {_read(folder / "failure.json", {"error": str})["error"]}')
    else:
      self.note(f'{folder}: is not finished, there is no result.json')
    return None

  def _phase_if_usable(self, folder: pathlib.Path, keys: _Keys) -> dict | None:
    try:
      return self._phase(folder, keys)
    except _Unusable as error:
      self.note(str(error))
      return None

  def _add(self, run: Run) -> None:
    known = self.runs.setdefault(
        (run.data, run.teacher, run.student, run.method, run.seed, run.protocol), run)
    if _numbers(known) != _numbers(run):
      self.note(f'{run.path}: {run.method} with seed {run.seed} has other numbers than in '
                f'{known.path}, under the same protocol; those of the latter are taken')


def _home(workdir: pathlib.Path) -> pathlib.Path:
  """The folder that holds the teacher and the heads of a workdir: itself, but in a sweep."""
  where = workdir if len(workdir.parts) > 2 else workdir.absolute()
  in_sweep = re.fullmatch(r'seed\d+', where.name) and not (where / 'teacher').is_dir()
  return where.parent.parent if in_sweep else where


def _protocol(config: dict, teacher: dict | None) -> str:
  """See `Run.protocol`; the config of the heads is a part of it, for heads may teach."""
  student = {key: value for key, value in config['student'].items() if key != 'methods'}
  heads = {key: value for key, value in config['heads'].items() if key != 'variables'}
  data = {key: value for key, value in config['data'].items() if key not in _FREE}
  return json.dumps({
      'data': data, 'student': student, 'heads': heads, 'dtype': config['dtype'],
      'sync_batch_norm': config['sync_batch_norm'],
      'teacher': teacher['fingerprint'] if teacher else None}, sort_keys=True)


def _numbers(run: Run) -> list:
  return [run.result[key] for key in ('test_last', 'test_best_val', 'val', 'method')]


def _with_validation(path: pathlib.Path, keys: _Keys) -> dict:
  """As `_read`; 'val' must be there too, and may be None."""
  result = _read(path, keys)
  if _at(path, result, 'val') is not None:
    _check(path, result, 'val.top1', float)
  return result


def _read(path: pathlib.Path, keys: _Keys) -> dict:
  """The content of a JSON file. Raises _Unusable where it is broken or lacks a key."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise _Unusable(f'{path}: cannot be read ({error.strerror})') from error
  except ValueError as error:
    raise _Unusable(f'{path}: is not JSON ({error})') from error
  for key, kind in keys.items():
    _check(path, content, key, kind)
  return content


def _check(path: pathlib.Path, content: Any, key: str, kind: type) -> None:
  value = _at(path, content, key)
  if kind is float:
    if not (type(value) in (int, float) and 0 <= value <= 1):
      raise _Unusable(f'{path}: {key!r} is {value!r}, and must be a number from 0 to 1')
  elif type(value) is not kind:
    raise _Unusable(f'{path}: {key!r} is {value!r}, and must be of type {kind.__name__}')


def _at(path: pathlib.Path, content: Any, key: str) -> Any:
  for name in key.split('.'):
    if not (isinstance(content, dict) and name in content):
      raise _Unusable(f'{path}: {key!r} is missing')
    content = content[name]
  return content
