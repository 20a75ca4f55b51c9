"""Files, local or on an object store: JSON that is never half written, names of folders."""
import json
import uuid
from typing import Any

from etils import epath

from kdih import errors
from kdih.runtime import processes


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is the address of an object store, such as gs://bucket/run."""
  return '://' in str(path)


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file so that it is either whole or as it was before; the first process does."""
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
    raise damaged(path, str(error)) from error


def damaged(path: epath.Path, reason: str) -> errors.ConfigError:
  """The error for a file of a workdir that does not hold what it should."""
  return errors.ConfigError(
      f'--workdir: {path} is damaged ({reason}); put it back from a copy, or remove it: what it '
      'tells of is then done again')


def folder_name(model: str) -> str:
  """The name of a model as that of a folder; import paths hold a colon."""
  return model.replace(':', '.').replace('/', '.')
