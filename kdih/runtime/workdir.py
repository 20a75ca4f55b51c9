"""The folder of a run: its manifest, its lock, and the results of its phases."""
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from etils import epath

from kdih import errors
from kdih.runtime import devices, files, processes, provenance, run_files
from kdih.runtime.files import is_remote

if TYPE_CHECKING:
  import ml_collections


# What the report of a run writes.
_REPORT = ('results.json', 'report.md', 'accuracy_by_depth.png', 'training_curves.png')
_PATTERN = '*?[\\'  # Orbax takes a path with one of these for a pattern of several paths.


class Workdir:
  """The folder of a run."""

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def manifest(self) -> dict[str, Any] | None:
    """Returns the fields of `run_files.Manifest`, or None before the first command.

    Raises:
      FileError, UnreadableError: the manifest is damaged, or cannot be read now.
    """
    return run_files.read(self.path / 'manifest.json', run_files.Manifest)

  def open(self, config: dict[str, Any], **identity: Any) -> None:
    """Makes the folder and writes `manifest.json`: the provenance, the config, the identity."""
    self._make()
    run_files.write(self.path / 'manifest.json',
                    {**provenance.collect(), 'config': config, **identity})

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from running in this folder; the lock ends with its process.

    An object store has no locks: a second process would not be noticed there.

    Raises:
      ConfigError: another process runs in this folder, or a sweep does one of its phases; or the
        folder cannot be locked.
    """
    self._make()
    with contextlib.ExitStack() as stack:
      if processes.is_first() and not is_remote(self.path):
        try:
          with named_in_errors(self.path):
            stack.enter_context(files.locked(self.path / '.lock'))
            for lock in self.path.glob('.locks/*'):
              _require_free(lock)
        except files.InUseError:
          raise errors.ConfigError(
              f'--workdir: another process is running in {self.path}; wait for it, or choose '
              'another folder') from None
      yield

  @contextlib.contextmanager
  def locked_phase(self, name: str) -> Iterator[None]:
    """Keeps other processes from this phase; other phases of the folder can run meanwhile.

    Raises:
      ConfigError: the folder cannot be locked.
      InUseError: another process does this phase, or runs in the whole folder.
    """
    folder = self.path / '.locks'
    with contextlib.ExitStack() as stack:
      with named_in_errors(self.path):
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(files.locked(folder / name.replace('/', '.')))
        _require_free(self.path / '.lock')
      yield

  @contextlib.contextmanager
  def locked_manifest(self) -> Iterator[None]:
    """Keeps other processes from changing the manifest, and waits for one that does.

    Sweeps of several methods share it. An object store has no locks.

    Raises:
      ConfigError: the folder cannot be made or locked.
    """
    self._make()
    with contextlib.ExitStack() as stack:
      if processes.is_first() and not is_remote(self.path):
        with named_in_errors(self.path):
          stack.enter_context(files.locked(
              self.path / '.manifest.lock', waiting=f'{self.path}: waits for another process'))
      yield

  def _make(self) -> None:
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.ConfigError(f'--workdir: {self.path} cannot be made ({error.strerror}); choose '
                               'another folder') from error

  def phase(self, name: str) -> epath.Path:
    """Returns the folder of a phase, and makes it first if it does not exist."""
    path = self.path / name
    path.mkdir(parents=True, exist_ok=True)
    return path

  def result(self, phase: str) -> dict[str, Any] | None:
    """Returns the result of a finished phase, or None; the same in all processes.

    Raises:
      FileError, UnreadableError: the result is damaged, or cannot be read now.
    """
    return devices.from_first_process(run_files.read_result(self.path, phase))

  def finish(self, phase: str, result: dict[str, Any]) -> dict[str, Any]:
    """Marks a phase as finished: its result is the last file that a phase writes."""
    run_files.write(self.phase(phase) / 'result.json',
                    {**result, 'made_by': provenance.collect()})
    devices.wait_for_all(f'{phase} finished')
    return result

  def results(self) -> dict[str, Any]:
    """Returns the results of all finished phases: {'teacher', 'heads', 'student': {method: ...}}.

    They are the same in all processes.

    Raises:
      FileError, UnreadableError: one of them, or the manifest, is damaged, or cannot be read now.
    """
    found: dict[str, Any] = {}
    for name in ('teacher', 'heads'):
      result = self.result(name)
      if result:
        found[name] = result
    # Others may not see a new file of a network's file system yet.
    names = devices.from_first_process(self._students())
    if names:
      found['student'] = {name: self.result(f'student/{name}') for name in names}
    return found

  def _students(self) -> list[str]:
    """Returns the finished students in the order of the config; those of earlier commands last."""
    students = [path.parent.name for path in self.path.glob('student/*/result.json')]
    manifest = run_files.read(self.path / 'manifest.json', run_files.Manifest)
    order = manifest['config']['student']['methods'] if manifest else []
    return sorted(students, key=lambda m: (order.index(m) if m in order else len(order), m))

  def reported(self) -> dict[str, Any] | None:
    """Returns the fields of `results.json`, `run_files.Results`, or None before the first report.

    Raises:
      FileError, UnreadableError: the file is damaged, or cannot be read now.
    """
    return run_files.read(self.path / 'results.json', run_files.Results)

  def check(self) -> None:
    """Checks the folder before anything is written.

    Raises:
      ConfigError: the folder cannot be written to; there is a symbolic link in it, a folder with
        the name of a file, or what is neither.
      FileError, UnreadableError: a result or `results.json` is damaged, or cannot be read now.
    """
    _check_path(self.path)
    if not is_remote(self.path):
      files.require_ordinary(self.path, '--workdir')
    self.results()
    self.reported()

  def check_phase(self, name: str) -> None:
    """Raises ConfigError if the folders of a phase that is left cannot be made or written to."""
    for folder in ('checkpoints/best', 'variables'):
      files.check_writable('--workdir', self.path / name / folder)

  def written(self, *, report: bool) -> list[epath.Path]:
    """Returns what there is with a name of what phases write, and with `report` of the report.

    All this is of a run only if there is a manifest, which a run writes first. A sweep may note
    without one why a phase failed.
    """
    found = [path for pattern in ('teacher/*', 'heads/*', 'student/*/*')
             for path in sorted(self.path.glob(pattern)) if 'failure.json' not in path.name]
    names = _REPORT if report else ()
    return [*found, *(self.path / name for name in names if files.exists(self.path / name))]


def resolved(config: 'ml_collections.ConfigDict') -> dict[str, Any]:
  """Returns every field of a config as JSON stores it: tuples become lists.

  Raises:
    ConfigError: a text cannot be written as UTF-8.
  """
  return msgspec.json.decode(run_files.encode(config.to_dict()))


def check_shared(path: epath.PathLike) -> None:
  """Raises ConfigError if several processes cannot work in the folder `path`."""
  if is_remote(path):
    raise errors.ConfigError(f'--workdir: {path} is not a folder of a file system, and processes '
                             'cannot share it safely; choose a local or mounted folder')


@contextlib.contextmanager
def named_in_errors(path: epath.PathLike) -> Iterator[None]:
  """Turns an error of the system, which a lock in the workdir `path` meets, into a ConfigError."""
  try:
    yield
  except OSError as error:
    reason = f'{error.strerror or errors.first_line(error)}: {error.filename or path}'
    raise errors.ConfigError(f'--workdir: {path} cannot be locked ({reason}); make it writable for '
                             'you, with all that it holds, or choose another folder') from error


def _require_free(lock: epath.Path) -> None:
  """Raises InUseError if another process holds the lock."""
  with files.locked(lock):
    pass


def _check_path(path: epath.Path) -> None:
  """Raises ConfigError unless a run can write its files at `path`."""
  if not is_remote(path) and set(_PATTERN) & set(str(path.absolute())):
    raise errors.ConfigError(
        f'--workdir: {path} has one of the characters {" ".join(_PATTERN)} in its path, with which '
        'no checkpoint is found; choose another folder')
  files.check_writable('--workdir', path)
