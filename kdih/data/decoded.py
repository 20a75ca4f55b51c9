"""Decoded splits, kept in the user's cache folder: the next start does not decode them again."""
import contextlib
import hashlib
import json
import os
import uuid
import zlib
from typing import Any, Protocol

import numpy as np
from etils import epath

_CACHE = '~/.cache/kdih/decoded'
_FEWEST = 5_000  # Images of which it is worth while,
_LARGEST = 2**30  # and bytes of them that still are no burden.
_KEPT = 4  # Files, those that were used last.

Examples = tuple[np.ndarray, np.ndarray]  # Images and labels.


class Split(Protocol):
  """What is needed of a split, such as a `kdih.data.source.Source`."""

  def read(self, indices: np.ndarray) -> Examples:
    """Images, uint8 [n, height, width, channels], and labels, int32 [n], of some examples."""

  def identity(self) -> dict[str, Any] | None:
    """What they depend on, for JSON; None where they are not to be kept."""


def read(split: Split, indices: np.ndarray) -> Examples:
  """As `split.read(indices)`, from the cache where the same files were read before."""
  identity = split.identity()
  if identity is None or len(indices) < _FEWEST:
    return split.read(indices)
  path = epath.Path(_CACHE).expanduser() / f'{_key(identity, indices)}.npz'
  found = _load(path)
  if found is None:
    found = split.read(indices)
    if found[0].nbytes <= _LARGEST:
      _save(path, found)
  return found


def _key(identity: dict[str, Any], indices: np.ndarray) -> str:
  described = json.dumps(identity, sort_keys=True).encode()
  return hashlib.sha256(described + indices.tobytes()).hexdigest()[:32]


def _checksum(examples: Examples) -> int:
  return zlib.crc32(examples[1].data, zlib.crc32(examples[0].data))


def _load(path: epath.Path) -> Examples | None:
  """What a file holds, or None where there is none, or one that is damaged."""
  try:
    with path.open('rb') as opened, np.load(opened, allow_pickle=False) as file:
      examples, checksum = (file['images'], file['labels']), int(file['checksum'])
    os.utime(path)
  except Exception:  # numpy and zipfile raise many kinds.
    return None
  return examples if checksum == _checksum(examples) else None


def _save(path: epath.Path, examples: Examples) -> None:
  """Writes the file; where there is no room, or no right to, there is no cache."""
  temporary = path.with_name(f'.{uuid.uuid4().hex}.tmp')
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as file:
      np.savez(file, images=examples[0], labels=examples[1],
               checksum=np.uint32(_checksum(examples)))
    temporary.replace(path)
  with contextlib.suppress(OSError):
    temporary.unlink(missing_ok=True)
    for old in sorted(path.parent.glob('*.npz'), key=os.path.getmtime)[:-_KEPT]:
      old.unlink(missing_ok=True)
