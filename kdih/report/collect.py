"""Finds the finished students in the folders of runs and sweeps; reads only their JSON files."""
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from kdih import errors
from kdih.config import protocol
from kdih.report.aggregate import Run, teacher_fingerprints
from kdih.runtime import run_files
from kdih.runtime.files import exists, folder_name, is_folder
from kdih.runtime.places import PHASES


def collect(paths: Iterable[str | os.PathLike]) -> tuple[list[Run], list[str]]:
  """Returns all finished students in the given folders, and a line for every problem.

  Args:
    paths: folders, each a run, a sweep, or a folder that holds several of them. A run in a sweep
      has the teacher and the heads of the folder two levels above.

  Returns:
    Runs sorted by path, for each given path in turn, every student once; and a line for every
    student that is unfinished, failed, damaged, or present twice with different numbers. Of the
    latter the first one counts. Runs under different protocols are different runs.

  Raises:
    UnreadableError: a file or a folder cannot be read now.
  """
  found = _Collection()
  for path in map(pathlib.Path, paths):
    try:
      if not is_folder(path):
        found.note(f'{path}: there is no such folder')
      elif not found.search(path):
        found.note(f'{path}: holds no student')
    except OSError as error:
      raise errors.UnreadableError(
          error.filename or path, error.strerror or errors.first_line(error)) from error
  return found.runs, found.problems


class _Collection:
  """The runs and problems found so far.

  Attributes:
    runs: in the order of the search.
    problems: one line each, without repetitions.
  """

  def __init__(self):
    self.runs: list[Run] = []
    self.problems: list[str] = []
    self._same: dict[tuple, list[Run]] = {}  # By data, models, method and seed.

  def note(self, problem: str) -> None:
    """Adds a problem."""
    problem = errors.printable(problem)
    if problem not in self.problems:
      self.problems.append(problem)

  def search(self, path: pathlib.Path) -> bool:
    """Adds the students below a folder; returns whether there is a workdir below it."""
    is_any = False
    for folder, names, files in os.walk(path, onerror=self._note_if_not_for_us):
      here = pathlib.Path(folder)
      if not os.access(here, os.X_OK):  # What it holds can be listed, and not opened.
        self.note(f'{here}: cannot be read (Permission denied)')
        names[:] = []
        continue
      if 'sweep.json' in files:
        self._read_sweep(here)
      if 'manifest.json' in files or any(exists(student / 'result.json')
                                         for student in _students(here)):
        is_any = True
        self._read_run(here)
        names[:] = [name for name in names if name not in PHASES]  # They are large.
      names[:] = sorted(name for name in names if not name.startswith('.'))
    return is_any

  def _note_if_not_for_us(self, error: OSError) -> None:
    if not isinstance(error, PermissionError | FileNotFoundError):  # Or it was removed meanwhile.
      raise error
    self.note(f'{error.filename}: cannot be read ({error.strerror})')

  def _read_sweep(self, path: pathlib.Path) -> None:
    """Notes which runs of a sweep have not begun, and which were left out and why."""
    try:
      commands = _read(path / 'sweep.json', list[run_files.SweepCommand])
    except errors.FileError as error:
      self.note(str(error))
      return
    for command in commands or []:
      for name, reason in (command.get('left_out') or {}).items():
        self.note(f'{path}: {name} was left out: {reason}')
      for teacher, student, methods in command['pairs']:
        folder = path / folder_name(teacher) / folder_name(student)
        not_begun = []
        for method in dict.fromkeys(methods):
          if seeds := [str(seed) for seed in command['seeds']
                       if not is_folder(folder / f'seed{seed}/student/{method}')]:
            not_begun.append(f'{method} with seed {", ".join(seeds)}')
        if not_begun:
          self.note(f'{path}: {teacher} -> {student}: not begun: {"; ".join(not_begun)}')

  def _read_run(self, workdir: pathlib.Path) -> None:
    """Adds the students of a workdir; the folder of a sweep's teacher has no students itself."""
    folders = _students(workdir)
    if not folders:
      if not any(workdir.glob('*/seed*')):
        self.note(f'{workdir}: holds no student')
      return
    home = _home(workdir)
    try:
      manifest = _read(workdir / 'manifest.json', run_files.Manifest)
      teacher = self._phase(home / 'teacher', run_files.TeacherResult)
    except errors.FileError as error:
      self.note(f'{error}; its students are left out')
      return
    if not manifest:
      self.note(f'{workdir / "manifest.json"}: is missing; its students are left out')
      return
    heads = self._heads(home / 'heads')
    for folder in folders:
      try:
        result = self._phase(folder, run_files.StudentResult)
      except errors.FileError as error:
        self.note(str(error))
        continue
      if result:
        self._add(self._run(folder, manifest, result, teacher, heads))

  def _run(
      self, folder: pathlib.Path, manifest: dict, result: dict, teacher: dict | None,
      heads: dict | None,
  ) -> Run:
    """Returns the finished student in a folder; notes what was accepted when it was resumed."""
    workdir, config = folder.parents[1], manifest['config']
    home = _home(workdir)
    if result.get('accepted'):
      self.note(f'{folder}: was resumed although {"; ".join(result["accepted"])}')
    if lost := result.get('best_lost'):
      self.note(f'{folder}: its best variables, of step {lost["step"]} with val top-1 '
                f'{100 * lost["top1"]:.2f} %, were damaged; the best ones that were left count')
    known = teacher_fingerprints(result)
    return Run(
        path=errors.printable(str(workdir)), data=config['data']['name'],
        teacher=config['teacher']['name'], student=_student(config, result),
        method=errors.printable(folder.name), seed=result['seed'],
        protocol=_protocol(config, teacher, result),
        settings=_settings(config, folder.name, result), result=result,
        teacher_result=self._own(home / 'teacher', teacher, known.get('variables')),
        heads_result=self._own(home / 'heads', heads, known.get('heads')),
        provenance=_provenance(result.get('made_by') or manifest),
        takes_heads=bool((config.get('heads') or {}).get('variables')),
        folder=config['data'].get('folder') or '')

  def _phase(self, folder: pathlib.Path, kind: type) -> dict | None:
    """Returns the result of a phase, or None if the phase is missing or not finished."""
    if not is_folder(folder):
      return None
    if result := _read(folder / 'result.json', kind):
      return result
    if failure := _read(folder / 'failure.json', run_files.Failure):
      self.note(f'{folder}: failed: {failure["error"]}')
    else:
      self.note(f'{folder}: is not finished, there is no result.json')
    return None

  def _own(
      self, folder: pathlib.Path, finished: dict | None, fingerprint: str | None
  ) -> dict | None:
    """Returns the result of teacher or heads, or None if another one taught the student.

    The fingerprint is the one in the student's result; a result of an earlier version has none.
    """
    if finished and fingerprint and finished['fingerprint'] != fingerprint:
      self.note(f'{folder}: is not the one that taught some of its students')
      return None
    return finished

  def _heads(self, folder: pathlib.Path) -> dict | None:
    try:
      return self._phase(folder, run_files.HeadsResult)
    except errors.FileError as error:
      self.note(f'{error}; the pictures of this cohort are left out')
      return None

  def _add(self, run: Run) -> None:
    same = self._same.setdefault((run.data, run.teacher, run.student, run.method, run.seed), [])
    known = next((other for other in same if not run.differences(other)), None)
    if known is None:
      same.append(run)
      self.runs.append(run)
    elif known.settings != run.settings or _has_other_numbers(known, run):
      self.note(f'{run.path}: {run.method} with seed {run.seed} has other numbers than in '
                f'{known.path}, under the same protocol; the numbers of the latter count')


def _students(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of a workdir's students, sorted."""
  folder = workdir / 'student'
  return [folder / name for name in sorted(os.listdir(folder) if is_folder(folder) else ())
          if is_folder(folder / name)]


def _read(path: pathlib.Path, kind: Any) -> Any:
  """Returns the content of a file as `run_files.read`, with texts that can be shown in a line."""
  return _printable(run_files.read(path, kind))


def _printable(content: Any) -> Any:
  if isinstance(content, dict):
    return {errors.printable(name): _printable(value) for name, value in content.items()}
  if isinstance(content, list):
    return [_printable(value) for value in content]
  return errors.printable(content) if isinstance(content, str) else content


def _home(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a workdir's teacher and heads: in a sweep it is two levels above."""
  where = workdir if len(workdir.parts) > 2 else workdir.absolute()
  in_sweep = re.fullmatch(r'seed\d+', where.name) and not is_folder(where / 'teacher')
  return where.parent.parent if in_sweep else where


def _student(config: dict, result: dict) -> str:
  """Returns the name of the student's model; a result of an earlier version may lack it."""
  fields = result.get('protocol') or {}
  return str(fields.get('student.name', config['student']['name']))


def _protocol(config: dict, teacher: dict | None, result: dict) -> str:
  """Returns `Run.protocol`, which includes the fields of the heads because heads may teach."""
  if result.get('protocol'):  # The manifest belongs to the last command.
    fields = {**protocol.averaged({}), **result['protocol']}
  else:
    fields = protocol.averaged(config)
  if result.get('accepted'):
    fields['accepted'] = result['accepted']
  fields['teacher'] = (
      teacher_fingerprints(result).get('variables') or (teacher or {}).get('fingerprint'))
  return json.dumps(fields, sort_keys=True)


def _settings(config: dict, method: str, result: dict) -> dict:
  """Returns `Run.settings`; for a result of an earlier version the parts come from the config."""
  parts = result.get('parts')
  if parts is None:
    parts = {part: config['methods'].get(part) for part in protocol.parts(config, method)}
  return {**result['method'], **({'parts': parts} if parts else {})}


def _provenance(manifest: dict) -> tuple[str, ...]:
  """Returns lines about the command, the code and the machine, from a manifest or `made_by`."""
  versions, devices = manifest.get('versions') or {}, manifest.get('devices') or []
  return (
      f'command: {manifest.get("command", "unknown")}',
      f'git commit: {manifest.get("git_commit", "unknown")}',
      f'devices: {", ".join(devices) or "unknown"} ({manifest.get("platform", "unknown")})',
      f'versions: {", ".join(f"{name} {at}" for name, at in versions.items()) or "unknown"}')


def _has_other_numbers(one: Run, other: Run) -> bool:
  """Returns whether a score differs that both runs have."""
  splits = [(one.result[split] or {}, other.result[split] or {})
            for split in ('test_last', 'test_best_val', 'val')]
  return any(ours[name] != theirs[name] for ours, theirs in splits
             for name in ours.keys() & theirs.keys())
