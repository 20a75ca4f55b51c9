"""Finished students, found in the folders of runs and sweeps; result files are all that is read."""
import json
import os
import pathlib
import re
from collections.abc import Iterable

from kdih import errors
from kdih.config import protocol
from kdih.report.aggregate import Run, teacher_fingerprints
from kdih.runtime import result_schema
from kdih.runtime.files import folder_name

_PHASES = ('teacher', 'heads', 'student')


def collect(paths: Iterable[str | os.PathLike]) -> tuple[list[Run], list[str]]:
  """Returns all finished students in the given folders, and what is wrong with the others.

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
    if not found.search(path):
      found.note(f'{path}: holds no student')
  return found.runs, found.problems


class _Collection:
  """What has been found so far.

  Attributes:
    runs: as they were found.
    problems: a line each, none twice.
  """

  def __init__(self):
    self.runs: list[Run] = []
    self._same: dict[tuple, list[Run]] = {}  # By data, models, method and seed.
    self.problems: list[str] = []

  def note(self, problem: str) -> None:
    """Adds a problem."""
    problem = errors.printable(problem)
    if problem not in self.problems:
      self.problems.append(problem)

  def search(self, path: pathlib.Path) -> bool:
    """Adds what is in a folder, however deep; returns whether there is a workdir."""
    is_any = False
    for folder, names, files in os.walk(path, onerror=self._note_unreadable):
      here = pathlib.Path(folder)
      if 'sweep.json' in files:
        self._read_sweep(here)
      if 'manifest.json' in files or any(here.glob('student/*/result.json')):
        is_any = True
        self._read_run(here)
        names[:] = [name for name in names if name not in _PHASES]  # They are large.
      names[:] = sorted(name for name in names if not name.startswith('.'))
    return is_any

  def _note_unreadable(self, error: OSError) -> None:
    self.note(f'{error.filename}: cannot be read ({error.strerror})')

  def _read_sweep(self, path: pathlib.Path) -> None:
    """Notes what a sweep was asked for and has not begun, or has left out, and why."""
    try:
      commands = result_schema.read_sweep(path / 'sweep.json')
    except result_schema.Unusable as error:
      self.note(str(error))
      return
    for asked in commands:
      for name, reason in (asked.get('left_out') or {}).items():
        self.note(f'{path}: {name} was left out: {reason}')
      for teacher, student, methods in asked['pairs']:
        folder = path / folder_name(teacher) / folder_name(student)
        not_begun = []
        for method in dict.fromkeys(methods):
          if seeds := [str(seed) for seed in asked['seeds']
                       if not (folder / f'seed{seed}/student/{method}').is_dir()]:
            not_begun.append(f'{method} with seed {", ".join(seeds)}')
        if not_begun:
          self.note(f'{path}: {teacher} -> {student}: not begun: {"; ".join(not_begun)}')

  def _read_run(self, workdir: pathlib.Path) -> None:
    """Adds the students of a workdir; that of a sweep's teacher has none itself."""
    folders = sorted(path for path in workdir.glob('student/*') if path.is_dir())
    if not folders:
      if not any(workdir.glob('*/seed*')):
        self.note(f'{workdir}: holds no student')
      return
    home = _home(workdir)
    try:
      manifest = result_schema.read(workdir / 'manifest.json', result_schema.MANIFEST)
      teacher = self._phase(home / 'teacher', result_schema.TEACHER)
    except result_schema.Unusable as error:
      self.note(f'{error}; its students are left out')
      return
    config = manifest['config']
    heads = self._heads(home / 'heads')
    path = errors.printable(str(workdir))
    for folder in folders:
      try:
        result = self._phase(folder, result_schema.STUDENT)
      except result_schema.Unusable as error:
        self.note(str(error))
        continue
      if result:
        if result.get('accepted'):
          self.note(f'{folder}: was resumed although {"; ".join(map(str, result["accepted"]))}')
        taught = teacher_fingerprints(result)
        own = (self._own(home / 'teacher', teacher, taught.get('variables')),
               self._own(home / 'heads', heads, taught.get('heads')))
        self._add(Run(
            path=path, data=config['data']['name'], teacher=config['teacher']['name'],
            student=_student(config, result), method=errors.printable(folder.name),
            seed=result['seed'], protocol=_protocol(config, teacher, result),
            settings=_settings(config, folder.name, result), result=result,
            teacher_result=own[0], heads_result=own[1],
            provenance=_provenance(result.get('made_by') or manifest),
            takes_heads=bool((config.get('heads') or {}).get('variables')),
            folder=config['data'].get('folder') or ''))

  def _phase(self, folder: pathlib.Path, keys: result_schema.Keys) -> dict | None:
    """Returns the result of a phase; None where there is no such phase, or it is not finished."""
    if not folder.is_dir():
      return None
    if (folder / 'result.json').exists():
      return result_schema.read_result(folder / 'result.json', keys)
    if (folder / 'failure.json').exists():
      failure = result_schema.read(folder / 'failure.json', result_schema.FAILURE)
      self.note(f'{folder}: failed: {failure["error"]}')
    else:
      self.note(f'{folder}: is not finished, there is no result.json')
    return None

  def _own(
      self, folder: pathlib.Path, finished: dict | None, fingerprint: str | None
  ) -> dict | None:
    """Returns the result of teacher or heads, but None where others taught the student: the
    fingerprint that its result tells, if any, is another one."""
    if finished and fingerprint and finished.get('fingerprint', fingerprint) != fingerprint:
      self.note(f'{folder}: holds others than those that taught some of its students')
      return None
    return finished

  def _heads(self, folder: pathlib.Path) -> dict | None:
    try:
      heads = self._phase(folder, result_schema.HEADS)
      if heads:
        result_schema.check_cohort(folder / 'result.json', heads)
    except result_schema.Unusable as error:
      self.note(f'{error}; the pictures of this cohort are left out')
      return None
    return heads

  def _add(self, run: Run) -> None:
    same = self._same.setdefault((run.data, run.teacher, run.student, run.method, run.seed), [])
    known = next((other for other in same if not run.differences(other)), None)
    if known is None:
      same.append(run)
      self.runs.append(run)
    elif _numbers(known) != _numbers(run):
      self.note(f'{run.path}: {run.method} with seed {run.seed} has other numbers than in '
                f'{known.path}, under the same protocol; those of the latter are taken')


def _home(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the teacher and heads of a workdir: itself, but in a sweep."""
  where = workdir if len(workdir.parts) > 2 else workdir.absolute()
  in_sweep = re.fullmatch(r'seed\d+', where.name) and not (where / 'teacher').is_dir()
  return where.parent.parent if in_sweep else where


def _student(config: dict, result: dict) -> str:
  """Returns the name of the student's model; a result of an earlier version may not tell."""
  fields = result.get('protocol') or {}
  return str(fields.get('student.name', config['student']['name']))


def _protocol(config: dict, teacher: dict | None, result: dict) -> str:
  """Returns `Run.protocol`; fields of the heads are a part of it, for heads may teach."""
  if result.get('protocol'):  # The manifest is of the last command.
    fields = {**protocol.averaged({}), **result['protocol']}
  else:
    fields = protocol.averaged(config)
  if result.get('accepted'):
    fields['accepted'] = result['accepted']
  fields['teacher'] = (
      teacher_fingerprints(result).get('variables') or (teacher or {}).get('fingerprint'))
  return json.dumps(fields, sort_keys=True)


def _settings(config: dict, method: str, result: dict) -> dict:
  """Returns `Run.settings`; a result of an earlier version lacks the parts."""
  parts = result.get('parts')
  if parts is None:
    parts = {part: config['methods'].get(part) for part in protocol.parts(config, method)}
  return {**result['method'], **({'parts': parts} if parts else {})}


def _provenance(manifest: dict) -> tuple[str, ...]:
  """Returns lines on command, code and machine, from a manifest or `made_by`."""
  versions, devices = manifest.get('versions') or {}, manifest.get('devices') or []
  return (
      f'command: {manifest.get("command", "unknown")}',
      f'git commit: {manifest.get("git_commit", "unknown")}',
      errors.printable(f'devices: {", ".join(map(str, devices)) or "unknown"} '
                       f'({manifest.get("platform", "unknown")})'),
      f'versions: {", ".join(f"{name} {at}" for name, at in versions.items()) or "unknown"}')


def _numbers(run: Run) -> list:
  return [run.settings, *(run.result[key] for key in ('test_last', 'test_best_val', 'val'))]
