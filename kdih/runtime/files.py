"""Files, local or on an object store: paths that a user gave, atomic writes, names of folders."""
import os
import uuid

from etils import epath

from kdih import errors
from kdih.runtime import processes


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is the address of an object store, such as gs://bucket/run."""
  return '://' in str(path)


def given(setting: str, path: epath.PathLike) -> epath.Path:
  """Returns the path that a setting names, with the home folder in the place of `~`.

  Raises:
    ConfigError: there is no such home folder, or the address is of an unknown kind.
  """
  shown = repr(errors.in_line(os.fspath(path)))
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
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
  except OSError as error:
    raise errors.ConfigError(f'{setting}: {path} cannot be opened ({error.strerror}); choose '
                             'another folder') from error
  if not existing.is_dir():
    raise errors.ConfigError(f'{setting}: {existing} is a file; choose a folder')
  if not os.access(existing, os.W_OK):
    raise errors.ConfigError(f'{setting}: {existing} cannot be written to; choose another folder')


def size(path: epath.Path) -> int:
  """Returns the bytes of a file; `epath` fails at the files of a user whose name is not known."""
  return path.stat().length if is_remote(path) else os.path.getsize(path)


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file so that it is either complete or unchanged; only the first process writes."""
  if not processes.is_first():
    return
  path = epath.Path(path)
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):  # An object appears as a whole.
    path.write_bytes(content)
    return
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
  temporary.write_bytes(content)
  temporary.replace(path)


def folder_name(model: str) -> str:
  """Returns the name of a folder for a model; an import path such as 'nets:Net' has a colon."""
  return model.replace(':', '.').replace('/', '.')
