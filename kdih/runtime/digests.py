"""Digests of trees of arrays and of JSON-able content."""
import hashlib
import json
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


def of_json(content: Any) -> str:
  """Returns the SHA-256 digest of JSON-able content, independent of the order of keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
