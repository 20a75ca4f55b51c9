"""Exported variables, with what they are for: the link from one phase, or run, to the next."""
import json
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from kdih import errors
from kdih.models import registry, taps
from kdih.phases import networks
from kdih.phases.networks import Networks
from kdih.runtime import devices, digests as digests_lib
from kdih.training import checkpoints

if TYPE_CHECKING:
  import ml_collections

Variables = dict[str, Any]


def describe_model(config: 'ml_collections.ConfigDict', role: str, num_classes: int) -> dict:
  """Returns what exported variables of the 'teacher' or 'student' say of their model."""
  return {'name': config[role].name, 'kwargs': config[role].kwargs.to_dict(),
          'num_classes': num_classes}


def describe_heads(built: Networks) -> dict:
  """Returns what exported variables of the heads say of their module."""
  return {'kind': built.heads.kind, 'num_classes': built.heads.num_classes,
          'taps': {tap: list(shape) for tap, shape in built.taps.items()}}


def save(path: epath.PathLike, variables: Variables, meta: dict) -> str:
  """Writes variables alone, replacing what is at `path`, with digests that loading checks.

  Args:
    path: a `variables` folder.
    variables: of a model, or of the heads; `taps.INPUT` is left out.
    meta: JSON-able; 'model' and 'data' say what they are of, and for which images.

  Returns:
    The digest of the variables, their fingerprint.
  """
  variables = devices.to_host(taps.without_input(variables))
  meta = {name: value for name, value in meta.items() if name != 'digests'}
  digests = {'meta': digests_lib.of_json(meta), 'variables': digests_lib.of(variables)}
  checkpoints.export(path, variables, {**meta, 'digests': digests})
  return digests['variables']


def fingerprint(meta: dict) -> str:
  """Returns that of the variables whose description has been loaded."""
  return meta['digests']['variables']


def load_model(
    path: epath.PathLike, model: str | None = None
) -> tuple[nn.Module, Variables, dict]:
  """Returns a trained teacher or student, to use: its module, its variables and their description.

      model, variables, meta = exported_variables.load_model('runs/digits/student/dih/variables')
      logits = model.apply(variables, images, train=False)

  Nothing that is stored is executed: a class of your own is imported only if you name it.

  Args:
    path: a `variables` folder. `meta['data']` says of which shape images must be, by which `mean`
      and `std` they are normalised once they are scaled to [0, 1], and what the `classes` are
      called, if that is known.
    model: the name of the model, 'my_pkg.nets:MyNet'; the stored one where it is one of kdih's.

  Raises:
    ConfigError: there are no exported variables of a model at `path`, they are damaged, or they
      are of a class that is not kdih's own and was not named.
  """
  meta = _read_meta(path, 'path')
  described = meta['model']
  if 'name' not in described:
    raise errors.ConfigError(f'path: {str(path)!r} holds heads, which are no model of their own')
  name = model or described['name']
  if not model and name not in registry.names():
    raise errors.ConfigError(
        f'path: {str(path)!r} holds the model {name!r}, which is none of kdih; a file does not '
        f'choose what is imported, so name it: load_model(path, model={name!r})')
  try:
    module = registry.create(name, described['num_classes'], setting=f'path: {str(path)!r}',
                             **described['kwargs'])
    like = taps.abstract_variables(module, meta['data']['image_shape'])
  except errors.ConfigError:
    raise
  except Exception as error:  # What is described may be anything.
    raise errors.ConfigError(f'path: {str(path)!r} does not describe its model '
                             f'({errors.first_line(error)}); export it anew') from error
  return module, _load(path, like, 'path', meta), meta


def describe(path: epath.PathLike) -> dict:
  """Returns what exported variables say they are of, and for which images: {'model', 'data', ...}.

  Raises:
    ConfigError: there are none at `path`, or they are damaged.
  """
  return _read_meta(path, 'path')


def load_teacher(
    path: epath.PathLike, config: 'ml_collections.ConfigDict', built: Networks,
    finished: dict | None = None,
) -> tuple[Variables, dict]:
  """Returns the teacher's variables at `path`, and their description.

  Where its images were normalised by other numbers than those of `config.data`, the variables hold
  `taps.INPUT` too, by which it sees them as it is used to.

  Args:
    path: a `variables` folder.
    config: of the run.
    built: its networks.
    finished: the result of the phase that left them in the workdir, if one did.

  Raises:
    ConfigError: there are none, they are damaged, of another architecture, of other classes or the
      same in another order, or not those of the phase.
  """
  setting = 'config.teacher.variables' if finished is None else '--workdir'
  wanted = describe_model(config, 'teacher', built.spec.num_classes)
  meta = _read_meta(path, setting)
  _check_finished(path, meta, finished)
  _compare(setting, path, meta['model'], wanted)
  data = meta.get('data')
  data = data if isinstance(data, dict) else {}
  _compare_classes(setting, path, data.get('classes'), built.spec.classes)
  own = _input(setting, path, data, config, built.spec.image_shape[-1])
  return {**_load(path, built.teacher_variables, setting, meta), **own}, meta


def load_heads(
    path: epath.PathLike, built: Networks, teacher: str, finished: dict | None = None
) -> tuple[Variables, dict]:
  """Returns the heads' variables at `path`, and their description.

  Args:
    path: a `variables` folder.
    built: the networks that they are for.
    teacher: fingerprint of the teacher that they must have been trained on.
    finished: the result of the phase that left them in the workdir, if one did.

  Raises:
    ConfigError: there are none, they are damaged, of other taps, another kind or another teacher,
      or not those of the phase.
  """
  setting = 'config.heads.variables' if finished is None else '--workdir'
  meta = _read_meta(path, setting)
  _check_finished(path, meta, finished)
  _compare(setting, path, meta['model'], describe_heads(built))
  if meta.get('teacher') != teacher:
    raise errors.ConfigError(
        f'{setting}: the heads at {str(path)!r} belong to another teacher; train heads on this '
        'one, or set config.teacher.variables to theirs')
  return _load(path, networks.abstract_heads(built), setting, meta), meta


def load(path: epath.PathLike, like: Any, setting: str) -> Variables:
  """Returns exported variables of a known model, as numpy arrays.

  Args:
    path: a `variables` folder that `save` wrote.
    like: variables of the same structure and shapes (`jax.ShapeDtypeStruct` will do).
    setting: the config field that names it, for the error.

  Raises:
    ConfigError: there are none, they are damaged, or of another structure or other shapes.
  """
  return _load(path, like, setting, _read_meta(path, setting))


def _load(path: epath.PathLike, like: Any, setting: str, meta: dict) -> Variables:
  """Loads as `load` does, with the description that has been read."""
  try:
    variables = checkpoints.restore(path)
  except Exception as error:  # orbax and tensorstore raise many kinds.
    raise _damaged(setting, path, errors.first_line(error)) from error
  if digests_lib.of(variables) != meta['digests']['variables']:
    raise _damaged(setting, path, 'they are not those that were written')
  if _shapes(variables) != _shapes(like):
    raise errors.ConfigError(
        f'{setting}: the variables at {str(path)!r} are not of this model; name the model and '
        'the classes that they were trained with')
  return variables


def _read_meta(path: epath.PathLike, setting: str) -> dict:
  """Returns the description, checked. Raises ConfigError where there is none, or it is damaged."""
  try:
    stored = checkpoints.read_meta(path, setting)
    meta = {name: value for name, value in stored.items() if name != 'digests'}
    whole = isinstance(meta['model'], dict) and 'variables' in stored['digests']
    unchanged = stored['digests']['meta'] == digests_lib.of_json(meta)
  except errors.ConfigError:
    raise
  except Exception as error:  # orbax raises many kinds, and the content may be anything.
    raise _damaged(setting, path, errors.first_line(error)) from error
  if not (whole and unchanged):
    raise _damaged(setting, path, 'their description is not the one that was written')
  return stored


def _check_finished(path: epath.PathLike, meta: dict, finished: dict | None) -> None:
  """Raises ConfigError where the variables are not those that the phase finished with."""
  if finished is None or finished.get('fingerprint') == fingerprint(meta):
    return
  folder = epath.Path(path).parent
  raise errors.ConfigError(
      f'--workdir: {str(path)!r} does not hold the variables that {folder / "result.json"} tells '
      f'of; put the folder back from a copy, or remove {folder} to do the phase anew')


def _compare_classes(
    setting: str, path: epath.PathLike, stored: Any, here: tuple[str, ...]
) -> None:
  """Raises ConfigError where the classes are not the same in the same order, if both are known."""
  if not (stored and here):
    return
  if not isinstance(stored, list) or len(stored) != len(here):
    raise _damaged(setting, path, 'they name other classes than they have')
  for number, (name, name_here) in enumerate(zip(stored, here, strict=True)):
    if name != name_here:
      raise errors.ConfigError(
          f'{setting}: the teacher at {str(path)!r} knows other classes, or these in another '
          f'order: its class {number} is {name!r}, here it is {name_here!r}; take one that was '
          'trained with these in this order, or train one')


def _input(
    setting: str, path: epath.PathLike, data: dict, config: 'ml_collections.ConfigDict',
    channels: int,
) -> Variables:
  """Returns {`taps.INPUT`: ...} of a model with the normalisation in `data`; {} if it is ours."""
  try:
    mean, std = _normalisation(data, channels)
    if not (np.isfinite([mean, std]).all() and (std > 0).all()):
      raise ValueError('no image can be normalised by them')
  except Exception as error:  # What is described may be anything.
    raise _damaged(setting, path, 'they do not say by which mean and std their images are '
                   f'normalised: {errors.first_line(error)}') from error
  mean_here, std_here = _normalisation(config.data, channels)
  if np.array_equal([mean, std], [mean_here, std_here]):
    return {}
  return {taps.INPUT: {'scale': np.float32(std_here / std),
                       'shift': np.float32((mean_here - mean) / std)}}


def _normalisation(data: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and std, float64 [channels] each; one number serves every channel."""
  mean, std = (np.broadcast_to(np.asarray(data[name], np.float64), channels)
               for name in ('mean', 'std'))
  return mean, std


def _damaged(setting: str, path: epath.PathLike, reason: str) -> errors.ConfigError:
  return errors.ConfigError(
      f'{setting}: the variables at {str(path)!r} are damaged, or of an early version of kdih '
      f'({reason}); put the folder back from a copy, or train them anew')


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {jax.tree_util.keystr(path): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _compare(setting: str, path: epath.PathLike, stored: dict, wanted: dict) -> None:
  wanted = json.loads(json.dumps(wanted))  # As it would have been stored.
  other = [f'{key} is {stored.get(key)!r} there and {value!r} here'
           for key, value in wanted.items() if stored.get(key) != value]
  if other:
    raise errors.ConfigError(f'{setting}: {str(path)!r} holds another model: {"; ".join(other)}')
