"""Files damaged on purpose, and what folders hold."""
import pathlib


def files(folder) -> list[pathlib.Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())


def contents(folder) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def places(content, path=()):
  """Yields the path to every value in JSON content, the content itself first."""
  yield path
  items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(
      content, list) else ()
  for key, value in items:
    yield from places(value, (*path, key))


def truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)
