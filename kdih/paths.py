"""What a path is."""
from etils import epath


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is the address of an object store, such as gs://bucket/run."""
  return '://' in str(path)
