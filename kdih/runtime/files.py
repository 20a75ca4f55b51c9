"""Files, local or on an object store: atomic writes, names of folders."""
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
