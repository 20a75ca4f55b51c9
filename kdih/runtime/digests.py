"""Digests of trees of arrays and of JSON-able content."""
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def of(tree: Any) -> str:
  """Returns the SHA-256 digest of the names, shapes, types and values of a tree of arrays."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def of_rows(count: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
  """Returns what `of` does for a pair of arrays, of which the first may be too large for memory.

  Args:
    count: the number of rows of each.
    blocks: the rows of both arrays, some at a time.
  """
  digest = hashlib.sha256()
  second: list[np.ndarray] = []
  for first, more in blocks:
    if not second:
      digest.update(f'[0] {(count, *first.shape[1:])} {first.dtype}'.encode())
    digest.update(np.ascontiguousarray(first).data)
    second.append(more)
  labels = np.concatenate(second)
  digest.update(f'[1] {labels.shape} {labels.dtype}'.encode())
  digest.update(labels.data)
  return digest.hexdigest()


def of_json(content: Any) -> str:
  """Returns the SHA-256 digest of JSON-able content, independent of the order of keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
