"""The files of a run: who made it (manifest), what came out (results), never half written."""
import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import filelock
from etils import epath

from kdih import errors
from kdih.runtime import devices, files, processes, provenance
from kdih.runtime.files import is_remote

if TYPE_CHECKING:
  import ml_collections


class Workdir:
  """The folder of a run."""

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def manifest(self) -> dict[str, Any] | None:
    """Returns what the last command wrote about the run; None before the first one.

    Raises:
      ConfigError: the folder cannot be written to, or the manifest is damaged.
    """
    _check_writable(self.path)
    path = self.path / 'manifest.json'
    manifest = files.read_json(path)
    if manifest is not None and not (
        isinstance(manifest, dict) and isinstance(manifest.get('config'), dict)):
      raise files.damaged(path, 'it holds no config')
    return manifest

  def open(self, config: dict[str, Any], **made_of: Any) -> None:
    """Makes the folder and writes `manifest.json`: the command, its config, what it is made of."""
    self._make()
    files.write_json(self.path / 'manifest.json',
                     {**provenance.collect(), 'config': config, **made_of})

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from running in this folder; the lock ends with its process.

    There are no locks on an object store: a second process would not be noticed there.

    Raises:
      ConfigError: another process does.
    """
    self._make()
    if is_remote(self.path) or not processes.is_first():
      yield
      return
    try:
      with filelock.FileLock(self.path / '.lock', blocking=False):
        yield
    except filelock.Timeout:
      raise errors.ConfigError(
          f'--workdir: another process is running in {self.path}; wait for it, or choose another '
          'folder') from None

  def _make(self) -> None:
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.ConfigError(f'--workdir: {self.path} cannot be made ({error.strerror}); choose '
                               'another folder') from error

  def phase(self, name: str) -> epath.Path:
    """Returns the folder of a phase, made where it is not there."""
    path = self.path / name
    path.mkdir(parents=True, exist_ok=True)
    return path

  def result(self, phase: str) -> dict | None:
    """Returns what a finished phase reported, or None; the same in all processes."""
    path = self.path / phase / 'result.json'
    result = devices.of_first(files.read_json(path))
    if not isinstance(result, dict | None):
      raise files.damaged(path, 'it is no group of fields')
    if result and not isinstance(result.get('accepted', []), list):
      raise files.damaged(path, "its 'accepted' is no list")
    return result

  def finish(self, phase: str, result: dict) -> dict:
    """Marks the phase as finished: nothing of it is written after this."""
    files.write_json(self.phase(phase) / 'result.json', {**result, 'made_by': provenance.collect()})
    devices.wait_for_all(f'{phase} finished')
    return result

  def results(self) -> dict:
    """Returns results of all finished phases: {'teacher', 'heads', 'student': {method: ...}}."""
    found: dict[str, dict] = {}
    for name in ('teacher', 'heads'):
      result = self.result(name)
      if result:
        found[name] = result
    students = [path.parent.name for path in self.path.glob('student/*/result.json')]
    # As the config names them; those of an earlier command last.
    manifest = files.read_json(self.path / 'manifest.json')
    order = manifest['config']['student']['methods'] if manifest else []
    names = sorted(students, key=lambda m: (order.index(m) if m in order else len(order), m))
    if names:
      found['student'] = {name: self.result(f'student/{name}') for name in names}
    return found


def resolved(config: 'ml_collections.ConfigDict') -> dict:
  """Returns every field of a config as JSON has it."""
  return json.loads(json.dumps(config.to_dict()))


def check_shared(path: epath.PathLike) -> None:
  """Raises ConfigError where several processes cannot work in the folder `path`."""
  if is_remote(path):
    raise errors.ConfigError(f'--workdir: {path} is no folder of a file system, and processes '
                             'cannot share it safely; choose a local or mounted folder')


def _check_writable(path: epath.Path) -> None:
  if is_remote(path):  # Only writing tells.
    return
  existing = next(p for p in (path, *path.absolute().parents) if p.exists())
  if not existing.is_dir():
    raise errors.ConfigError(f'--workdir: {existing} is a file; choose a folder')
  if not os.access(existing, os.W_OK):
    raise errors.ConfigError(f'--workdir: {existing} cannot be written to; choose another folder')
