"""What tells contents apart, bit by bit: trees of arrays, and what JSON can keep."""
import hashlib
import json
from typing import Any

import jax
import numpy as np


def of(tree: Any) -> str:
  """SHA-256 of names, shapes, types and values."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def of_json(content: Any) -> str:
  """SHA-256 of what JSON keeps of `content`, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
