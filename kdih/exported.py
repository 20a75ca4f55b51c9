"""Exported variables, with what they are for: the link from one phase, or run, to the next."""
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath

from kdih import checkpoint, errors, models, modules, taps as taps_lib
from kdih.modules import Modules

Variables = dict[str, Any]


def fingerprint(variables: Variables) -> str:
  """SHA-256 of names, shapes, types and values."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def describe_model(config: ml_collections.ConfigDict, role: str, num_classes: int) -> dict:
  """What exported variables of the 'teacher' or 'student' say of their model."""
  return {'name': config[role].name, 'kwargs': config[role].kwargs.to_dict(),
          'num_classes': num_classes}


def describe_heads(built: Modules) -> dict:
  """What exported variables of the heads say of their module."""
  return {'kind': built.heads.kind, 'num_classes': built.heads.num_classes,
          'taps': {tap: list(shape) for tap, shape in built.taps.items()}}


def load_model(path: epath.PathLike) -> tuple[nn.Module, Variables, dict]:
  """A trained teacher or student, to use: its module, its variables and their description.

      model, variables, meta = exported.load_model('runs/digits/student/dih/variables')
      logits = model.apply(variables, images, train=False)

  Args:
    path: a `variables` folder. `meta['data']` says of which shape images must be, and by which
      `mean` and `std` they are normalised once they are scaled to [0, 1].

  Raises:
    ConfigError: there are no exported variables of a model at `path`.
  """
  meta = checkpoint.read_meta(path, 'path')
  if 'name' not in meta['model']:
    raise errors.ConfigError(f'path: {str(path)!r} holds heads, which are no model of their own')
  described = meta['model']
  model = models.create(described['name'], described['num_classes'], **described['kwargs'])
  return model, checkpoint.restore(path), meta


def load_teacher(
    path: epath.PathLike, config: ml_collections.ConfigDict, built: Modules
) -> tuple[Variables, dict]:
  """The teacher's variables at `path`, and their description.

  Raises:
    ConfigError: there are none, or they are of another architecture or other classes.
  """
  setting = 'config.teacher.variables'
  wanted = describe_model(config, 'teacher', built.spec.num_classes)
  meta = checkpoint.read_meta(path, setting)
  _compare(setting, path, meta['model'], wanted)
  like = taps_lib.abstract_variables(built.teacher, built.spec.image_shape)
  return checkpoint.load(path, like, setting), meta


def load_heads(path: epath.PathLike, built: Modules, teacher: str) -> tuple[Variables, dict]:
  """The heads' variables at `path`, and their description.

  Args:
    path: a `variables` folder.
    built: the modules that they are for.
    teacher: fingerprint of the teacher that they must have been trained on.

  Raises:
    ConfigError: there are none, or they are of other taps, another kind or another teacher.
  """
  setting = 'config.heads.variables'
  meta = checkpoint.read_meta(path, setting)
  _compare(setting, path, meta['model'], describe_heads(built))
  if meta['teacher'] != teacher:
    raise errors.ConfigError(
        f'{setting}: the heads at {str(path)!r} belong to another teacher; train heads on this '
        'one, or set config.teacher.variables to theirs')
  like = modules.abstract_heads(built)
  return checkpoint.load(path, like, setting), meta


def _compare(setting: str, path: epath.PathLike, stored: dict, wanted: dict) -> None:
  wanted = json.loads(json.dumps(wanted))  # As it would have been stored.
  other = [f'{key} is {stored.get(key)!r} there and {value!r} here'
           for key, value in wanted.items() if stored.get(key) != value]
  if other:
    raise errors.ConfigError(f'{setting}: {str(path)!r} holds another model: {"; ".join(other)}')
