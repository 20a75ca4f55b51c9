"""Files, local or on an object store: paths, atomic writes, locks, links, errors of the system."""
import contextlib
import errno
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

import filelock
from etils import epath

from kdih import errors
from kdih.runtime import processes

try:
  import fcntl
except ImportError:  # On Windows.
  fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Of the files that runs and reports write, and the folders in which they do.
_FOLDERS = ('teacher', 'heads', 'student', 'comparison', 'pictures')
_SUFFIXES = ('.json', '.jsonl', '.md', '.txt', '.png', '.svg', '.csv', '.tex', '.html', '.bin')
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
# How messages of tensorstore begin, and TensorFlow's numbers, where a store gave no file. Of other
# codes, such as DATA_LOSS, OUT_OF_RANGE and FAILED_PRECONDITION, the file is the cause.
_REFUSED = {'PERMISSION_DENIED': 7, 'UNAUTHENTICATED': 16}
_UNANSWERED = {'CANCELLED': 1, 'UNKNOWN': 2, 'DEADLINE_EXCEEDED': 4, 'RESOURCE_EXHAUSTED': 8,
               'ABORTED': 10, 'INTERNAL': 13, 'UNAVAILABLE': 14}
_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{16}\.tmp')  # The names that `_temporary` gives.
_CLIENTS = ('aiohttp.', 'gcsfs.', 'google.auth.')  # Whose own errors are those of a store.


class InUseError(RuntimeError):
  """Another process holds a lock."""


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is the address of an object store, such as gs://bucket/run."""
  return '://' in str(path)


def given(setting: str, path: epath.PathLike) -> epath.Path:
  """Returns the path that a setting names, with the home folder in the place of `~`.

  Raises:
    ConfigError: there is no such home folder, the address is of an unknown kind, or there is a null
      character in the path.
  """
  shown = repr(errors.in_line(os.fspath(path)))
  if '\0' in os.fspath(path):
    raise errors.ConfigError(f'{setting}: {shown} has a null character; write another path')
  expanded = os.path.expanduser(os.fspath(path))
  if expanded.startswith('~'):
    raise errors.ConfigError(f'{setting}: {shown} has no home folder; write the whole path, or set '
                             'the environment variable HOME')
  try:
    return epath.Path(expanded)
  except KeyError:
    raise errors.ConfigError(f'{setting}: {shown} is not an address that can be opened; choose a '
                             'folder, or an address such as gs://bucket/folder') from None


def check_writable(setting: str, path: epath.Path) -> None:
  """Raises ConfigError if a folder, which need not exist, cannot be made or written to."""
  if is_remote(path):  # Only an attempt to write shows whether it is possible.
    return
  try:
    os.fspath(path.absolute()).encode()
  except UnicodeEncodeError:  # TensorFlow and TensorStore cannot write there.
    raise errors.ConfigError(f'{setting}: {errors.in_line(path.absolute())!r} is not valid Unicode '
                             'text; choose another folder') from None
  try:
    existing = existing_part(path)
    missing = path.absolute().parts[len(existing.absolute().parts):]
    for part in (path, *(existing / name for name in missing)):
      with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(part)  # `exists` says no at a name that is too long.
  except OSError as error:
    raise errors.ConfigError(f'{setting}: {path} cannot be opened ({error.strerror}); choose '
                             'another folder') from error
  if not existing.is_dir():
    raise errors.ConfigError(f'{setting}: {existing} is a file; choose a folder')
  if not os.access(existing, os.W_OK):
    raise errors.ConfigError(f'{setting}: {existing} cannot be written to; choose another folder')


def existing_part(path: epath.Path) -> epath.Path:
  """Returns a local path, or the nearest of the folders above it that exists."""
  return next(part for part in (path, *path.absolute().parents) if part.exists())


def size(path: epath.Path) -> int:
  """Returns the bytes of a file; `epath` fails at the files of a user whose name is not known."""
  return path.stat().length if is_remote(path) else os.path.getsize(path)


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file so that it is either complete or unchanged; only the first process writes.

  It is so after a power cut, too: the content is on the disk before it has the name of the file.

  A process that is killed may leave a temporary file, which the next one that writes any file in
  the folder removes. On a file system without locks it stays, for it may be that of another process
  that writes.

  Raises:
    OSError: the file cannot be written; it is unchanged.
  """
  if not processes.is_first():
    return
  path = epath.Path(path)
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):  # An object appears as a whole.
    path.write_bytes(content)
    return
  for left in path.parent.iterdir():
    if _TEMPORARY.fullmatch(left.name):
      _remove_unless_locked(left)
  try:
    with _temporary(path) as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
      os.replace(file.name, path)
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _temporary(path: epath.Path) -> Iterator[BinaryIO]:
  """Opens a file beside another one, and holds its lock, so that nobody takes it for left over."""
  while True:
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.tmp')
    with open(temporary, 'xb') as file:
      try:
        flock(file.fileno())
        if exists(temporary):  # Otherwise another process has removed it before it was locked.
          yield file
          return
      except OSError:
        with contextlib.suppress(OSError):
          temporary.unlink(missing_ok=True)
        raise


def _remove_unless_locked(path: epath.Path) -> None:
  # It may be complete by now, or be another user's.
  with contextlib.suppress(OSError), open(path, 'r+b') as file:
    if flock(file.fileno(), wait=False):
      path.unlink()


def exists(path: epath.Path) -> bool:
  """Returns whether there is something at a path.

  Raises:
    OSError: the system cannot tell, such as at a stale file handle; `Path.exists` says no then.
  """
  return path.exists() if is_remote(path) else status(path) is not None


def is_file(path: epath.Path) -> bool:
  """Returns whether a path is a file, which ends: a pipe would keep its reader waiting.

  Raises:
    OSError: as `exists`.
  """
  return path.is_file() if is_remote(path) else _is(stat.S_ISREG, path)


def is_folder(path: epath.Path) -> bool:
  """Returns whether a path is a folder.

  Raises:
    OSError: as `exists`.
  """
  return path.is_dir() if is_remote(path) else _is(stat.S_ISDIR, path)


def _is(kind: Callable[[int], bool], path: epath.PathLike) -> bool:
  found = status(path)
  return found is not None and kind(found.st_mode)


def status(path: epath.PathLike) -> os.stat_result | None:
  """Returns what `os.stat` does for a local path, or None if there is nothing.

  Raises:
    OSError: as `exists`.
  """
  try:
    return os.stat(path)
  except OSError as error:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
      raise
  except ValueError:  # There is a null character in the path.
    pass
  return None


def require_ordinary(folder: epath.PathLike, setting: str) -> None:
  """Checks that files can be written in a folder, and nowhere else.

  Args:
    folder: local; it may not exist. It may itself be a link.
    setting: the setting that names the folder, for the error.

  Raises:
    ConfigError: there is a symbolic link in the folder, a folder with the name of a file, or what
      is neither a file nor a folder; or a folder in it cannot be listed now. Hidden folders such as
      .git are not looked into, but for that of locks: nothing else is written there.
  """
  pending = [os.fspath(folder)]
  while pending:
    here = pending.pop()
    is_filled = os.path.relpath(here, folder).split(os.sep)[0] in ('.', *_FOLDERS)
    for entry in _entries(here, setting):
      if entry.is_symlink():
        raise errors.ConfigError(errors.in_line(
            f'{setting}: {entry.path} is a symbolic link, and what it points to would be written '
            'to; put a copy in its place, or choose another folder'))
      if entry.is_dir():
        if is_filled and os.path.splitext(entry.name)[1] in _SUFFIXES:
          raise errors.ConfigError(errors.in_line(
              f'{setting}: {entry.path} is a folder, and a file would be written in its place; '
              'remove it, or choose another folder'))
        if entry.name == '.locks' or not entry.name.startswith('.'):
          pending.append(entry.path)
      elif not entry.is_file() and os.path.lexists(entry.path):  # Another process may remove it.
        raise errors.ConfigError(errors.in_line(
            f'{setting}: {entry.path} is neither a file nor a folder; remove it, or choose another '
            'folder'))


def _entries(folder: str, setting: str) -> list[os.DirEntry[str]]:
  """Returns what a folder holds, sorted; [] for one into which this process cannot write.

  Raises:
    ConfigError: as `require_ordinary`.
  """
  try:
    with os.scandir(folder) as entries:
      return sorted(entries, key=lambda entry: entry.name)
  except OSError as error:
    # It is gone, or another user's, such as `lost+found`.
    if system_error(error) is None or (
        isinstance(error, PermissionError) and not os.access(folder, os.X_OK)):
      return []
    raise errors.ConfigError(errors.in_line(
        f'{setting}: {folder} cannot be listed ({error.strerror}); make it readable, or run the '
        'same command again')) from error


@contextlib.contextmanager
def locked(path: epath.PathLike, *, waiting: str | None = None) -> Iterator[None]:
  """Holds the lock that a file stands for; the lock ends with its process.

  On a file system without locks nothing is held, and a warning says so.

  Args:
    path: the file, whose folder exists.
    waiting: what to log if another process holds the lock; None raises an error then.

  Raises:
    InUseError: another process holds the lock, and `waiting` is None.
  """
  lock = filelock.FileLock(path)
  try:
    try:
      lock.acquire(blocking=False)
    except filelock.Timeout:
      if waiting is None:
        raise InUseError(f'another process uses {path}') from None
      logger.info(waiting)
      lock.acquire()
  except (NotImplementedError, OSError) as error:
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
      raise
    logger.warning(f'{path}: this file system has no locks; start no second process here')
  try:
    yield
  finally:
    lock.release()


def flock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
  """Locks an open file until it is closed; returns whether this process now holds the lock.

  It does not if another process holds the lock, or if there are no locks on this file system.

  Args:
    descriptor: of the file, which is open for writing.
    shared: whether others can hold the lock, too, if theirs is shared.
    wait: whether to wait for another process.
  """
  if fcntl is None:
    return False
  operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  try:
    fcntl.flock(descriptor, operation if wait else operation | fcntl.LOCK_NB)
  except OSError:
    return False
  return True


def folder_name(model: str) -> str:
  """Returns the name of a folder for a model; an import path such as 'nets:Net' has a colon."""
  return model.replace(':', '.').replace('/', '.')


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns an absolute path; gs://bucket/run is absolute."""
  return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def system_error(error: BaseException) -> int | None:
  """Returns the number (`errno`) of an error by which a file could not be read or written now.

  Returns None if the error says something about a file itself: it is missing, of another kind, or
  its content is damaged. What cannot be read now is not known to be damaged. An object store that
  does not answer has no number of its own: EIO stands for it, and EACCES if it denies the access.
  """
  number = own_number(error)
  if number is None:
    return _store_error(error)
  return None if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) else number


def own_number(error: BaseException) -> int | None:
  """Returns the number (`errno`) that an error has, or None."""
  if isinstance(error, MemoryError):
    return errno.ENOMEM
  # tensorstore raises ValueError, with the number in the message.
  in_text = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
  return int(in_text[1] or in_text[2]) if in_text else getattr(error, 'errno', None)


def _store_error(error: BaseException) -> int | None:
  """Returns what `system_error` does for an error without a number."""
  module = type(error).__module__
  if (isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
      or module.startswith(('jax.', 'jaxlib.'))):  # JAX's tell of devices and other processes.
    return None
  code = (getattr(error, 'error_code', None) if module.startswith('tensorflow.')
          else str(error).partition(':')[0])
  if isinstance(error, PermissionError) or code in (*_REFUSED, *_REFUSED.values()):
    return errno.EACCES
  if (isinstance(error, OSError) or module.startswith(_CLIENTS)
      or code in (*_UNANSWERED, *_UNANSWERED.values())):
    return errno.EIO
  return None
