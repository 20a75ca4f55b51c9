"""Files, local or on an object store: atomic writes, names of folders, errors of the system."""
import errno
import re
import uuid

from etils import epath

from kdih.runtime import processes


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path is the address of an object store, such as gs://bucket/run."""
  return '://' in str(path)


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


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns an absolute path; gs://bucket/run is absolute."""
  return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def system_error(error: BaseException) -> int | None:
  """Returns the number (`errno`) of an error by which the system could not read or write.

  Returns None if the error says something about a file itself: it is missing, of another kind, or
  its content is damaged. What cannot be read now is not known to be damaged.
  """
  if isinstance(error, MemoryError):
    return errno.ENOMEM
  # tensorstore raises ValueError, with the number in the message.
  in_text = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
  number = int(in_text[1] or in_text[2]) if in_text else getattr(error, 'errno', None)
  return None if number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) else number
