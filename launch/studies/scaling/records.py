"""The JSON file that holds every number, part by part."""
import pathlib
from typing import Any

from kdih import errors
from kdih.runtime.files import read_json, write_json

NAME = 'scaling.json'


def read(folder: pathlib.Path) -> dict[str, Any]:
  """All parts that have been made, by name; {} where there are none.

  Raises:
    ConfigError: the file is damaged, or none of this program's.
  """
  content = read_json(folder / NAME) or {}
  if not isinstance(content, dict):
    raise errors.ConfigError(f'--out: {folder / NAME} holds no parts; choose another folder')
  return content


def put(folder: pathlib.Path, part: str, content: Any) -> None:
  """Writes a part, atomically, and leaves the others as they are."""
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / NAME, {**read(folder), part: content})
