"""The files of a run: who made it (manifest), what came out (results), never half written."""
import contextlib
import functools
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import filelock
import jax
import ml_collections
from etils import epath

import kdih
from kdih import config_lib, distributed, errors, parallel
from kdih.paths import is_remote
from kdih.result_files import flatten

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml-collections', 'clu', 'numpy')
# Fields that choose what runs or is shown, and change no number of a finished phase.
_FREE = ('phases', 'student.methods', 'sweep', 'distributed', 'profile', 'log_every_steps',
         'on_nan', 'max_rewinds', 'data.data_dir', 'compute.steps_per_call', 'compute.prefetch',
         'compute.remat', 'compute.cache_place', 'compute.keep_freed_memory',
         'compute.compilation_cache')


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file so that it is either whole or as it was before; the first process does."""
  if not distributed.is_first():
    return
  path, content = epath.Path(path), content.encode() if isinstance(content, str) else content
  if is_remote(path):  # An object appears as a whole.
    path.write_bytes(content)
    return
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
  temporary.write_bytes(content)
  temporary.replace(path)


def write_json(path: epath.PathLike, content: Any) -> None:
  """Writes JSON atomically."""
  write_atomically(path, json.dumps(content, indent=2) + '\n')


def read_json(path: epath.PathLike) -> Any | None:
  """The content of a JSON file, or None where there is no file.

  Raises:
    ConfigError: it is damaged.
  """
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise _damaged(path, str(error)) from error


def _damaged(path: epath.Path, reason: str) -> errors.ConfigError:
  return errors.ConfigError(
      f'--workdir: {path} is damaged ({reason}); put it back from a copy, or remove it: what it '
      'tells of is then done again')


class Workdir:
  """The folder of a run.

  Args:
    path: of the folder.
    free: fields, or groups of them, that may change from one command to the next, beside those
      that change no number.
  """

  def __init__(self, path: epath.PathLike, free: tuple[str, ...] = ()):
    self.path = epath.Path(path)
    self._free = (*_FREE, *free)

  def check(self, config: ml_collections.ConfigDict) -> None:
    """Writes nothing; raises ConfigError where `config` cannot run in this folder."""
    _check_writable(self.path)
    path = self.path / 'manifest.json'
    manifest = read_json(path)
    if manifest is None:
      return
    if not (isinstance(manifest, dict) and isinstance(manifest.get('config'), dict)):
      raise _damaged(path, 'it holds no config')
    changed = sorted(self._differences(manifest['config'], resolved(config)))
    if changed:
      raise errors.ConfigError(
          f'--workdir: {self.path} holds a run of another config; changed: '
          f'{", ".join(changed)}. Choose another workdir, or set these back')

  def _differences(self, old: dict, new: dict) -> Iterator[str]:
    # A field that kdih did not have yet when the run was begun had its default.
    defaults = dict(flatten(resolved(config_lib.base())))
    old, new = {**defaults, **dict(flatten(old))}, dict(flatten(new))
    for name in old.keys() | new.keys():
      if not self._is_free(name) and old.get(name) != new.get(name):
        yield f'config.{name} (was {old.get(name)!r}, is {new.get(name)!r})'

  def _is_free(self, name: str) -> bool:
    group, *rest = name.split('.')
    if group == 'methods':  # Those of a method that was never begun here.
      return not (self.path / 'student' / rest[0]).exists()
    return any(name == free or name.startswith(f'{free}.') for free in self._free)

  def open(self, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes `manifest.json`."""
    self._make()
    write_json(self.path / 'manifest.json', {**_provenance(), 'config': resolved(config)})

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Where no other process runs in this folder; the lock ends with its process.

    There are no locks on an object store: a second process would not be noticed there.

    Raises:
      ConfigError: another process does.
    """
    self._make()
    if is_remote(self.path) or not distributed.is_first():
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
    """The folder of a phase, made where it is not there."""
    path = self.path / name
    path.mkdir(parents=True, exist_ok=True)
    return path

  def result(self, phase: str) -> dict | None:
    """What a finished phase reported, or None; the same in all processes."""
    path = self.path / phase / 'result.json'
    result = parallel.of_first(read_json(path))
    if not isinstance(result, dict | None):
      raise _damaged(path, 'it is no group of fields')
    return result

  def finish(self, phase: str, result: dict) -> dict:
    """Marks the phase as finished: nothing of it is written after this."""
    write_json(self.phase(phase) / 'result.json', {**result, 'made_by': _provenance()})
    parallel.wait_for_all(f'{phase} finished')
    return result

  def results(self) -> dict:
    """The results of all finished phases: {'teacher', 'heads', 'student': {method: ...}}."""
    found = {name: self.result(name) for name in ('teacher', 'heads')}
    paths = {path.parent.name: path for path in self.path.glob('student/*/result.json')}
    students = {name: read_json(paths[name]) for name in self._in_order(paths)}
    return {**{name: result for name, result in found.items() if result},
            **({'student': students} if students else {})}

  def _in_order(self, methods: Iterable[str]) -> list[str]:
    """As the config names them; those of an earlier command last."""
    manifest = read_json(self.path / 'manifest.json')
    order = manifest['config']['student']['methods'] if manifest else []
    return sorted(methods, key=lambda m: (order.index(m) if m in order else len(order), m))


def resolved(config: ml_collections.ConfigDict) -> dict:
  """Every field of a config as JSON has it."""
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


def _provenance() -> dict[str, Any]:
  """What made it: the command, the code, the machine."""
  return {
      'command': _command(),
      'versions': {'kdih': kdih.__version__, 'python': sys.version.split()[0], **_versions()},
      'devices': [str(device.device_kind) for device in jax.devices()],
      'platform': jax.default_backend(),
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'git_commit': _git_commit(),
  }


def _command() -> str:
  program = epath.Path(sys.argv[0])
  if program.parent.name != 'kdih':  # A notebook, or a program of the user's own.
    return shlex.join(sys.argv)
  return shlex.join(['python', '-m', f'kdih.{program.stem}', *sys.argv[1:]])


@functools.cache
def _versions() -> dict[str, str]:
  found = {}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'not installed'
  return found


@functools.cache
def _git_commit() -> str:
  command = ['git', '-C', str(epath.Path(__file__).parent), 'describe', '--always', '--dirty',
             '--abbrev=40', '--exclude=*']
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
