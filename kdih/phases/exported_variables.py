"""Exported variables and their description: the link from one phase, or run, to the next."""
import contextlib
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import msgspec
import numpy as np
from etils import epath

from kdih import errors
from kdih.models import cost, registry, taps
from kdih.phases import networks
from kdih.phases.networks import Networks
from kdih.runtime import devices, digests as digests_lib, files, run_files
from kdih.training import orbax_files

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)

Variables = dict[str, Any]

# Bounds for files of others: what no model, and no training, comes near.
_LAYERS_PER_ARRAY = 20
_MAX_RATIO = 1000  # Bytes in memory for each byte on disk.


def describe_model(config: 'ml_collections.ConfigDict', role: str, num_classes: int) -> dict:
  """Returns the description of a model, the 'teacher' or the 'student', for its variables."""
  return {'name': config[role].name, 'kwargs': config[role].kwargs.to_dict(),
          'num_classes': num_classes}


def describe_heads(built: Networks) -> dict:
  """Returns the description of the heads' module, for their variables."""
  return {'kind': built.heads.kind, 'num_classes': built.heads.num_classes,
          'taps': {tap: list(shape) for tap, shape in built.taps.items()}}


def save(path: epath.PathLike, variables: Variables, meta: dict) -> str:
  """Writes variables and their description, with digests that loading checks.

  Args:
    path: a `variables` folder; its content is replaced.
    variables: of a model, or of the heads; `taps.INPUT` is left out.
    meta: JSON-able; 'model' describes the module and 'data' the images.

  Returns:
    The fingerprint of the variables: their digest.
  """
  variables = devices.to_host(taps.without_input(variables))
  meta = {name: value for name, value in meta.items() if name != 'digests'}
  digests = {'meta': digests_lib.of_json(meta), 'variables': digests_lib.of(variables)}
  orbax_files.export(path, variables, {**meta, 'digests': digests})
  return digests['variables']


def fingerprint(meta: dict) -> str:
  """Returns the fingerprint of the variables with the description `meta`."""
  return meta['digests']['variables']


def load_model(
    path: epath.PathLike, model: str | None = None
) -> tuple[nn.Module, Variables, dict]:
  """Returns a trained teacher or student: its module, its variables and their description.

      model, variables, meta = exported_variables.load_model('runs/digits/student/dih/variables')
      logits = model.apply(variables, images, train=False)

  Nothing that is stored is executed: a class of your own is imported only if you name it.

  Args:
    path: a `variables` folder.
    model: the name of the model, such as 'my_pkg.nets:MyNet'; may be None for a model of kdih.

  Returns:
    The module, the variables, and a description. `description['data']` holds the `image_shape`,
    the `mean` and `std` by which images in [0, 1] are normalised, and the names of the `classes`
    or None.

  Raises:
    ConfigError: there are no exported variables of a model at `path`, they are damaged, or their
      model is not part of kdih and `model` does not name it.
  """
  path = files.given('path', path)
  meta = describe(path, 'path')
  described = meta['model']
  if 'name' not in described:
    raise errors.ConfigError(f'path: {str(path)!r} holds heads, which cannot be used without a '
                             'teacher; give the variables of a teacher or a student')
  name = model or described['name']
  if not model and name not in registry.names():
    raise errors.ConfigError(
        f'path: {str(path)!r} holds the model {name!r}, which is not part of kdih; to import it, '
        f'name it: load_model(path, model={name!r})')
  stored = _stored_shapes(path, 'path')
  try:
    module = registry.create(name, described['num_classes'], setting=f'path: {str(path)!r}',
                             **described['kwargs'])
    with _at_most(_LAYERS_PER_ARRAY * len(stored)):
      like = taps.abstract_variables(module, meta['data']['image_shape'])
  except errors.ConfigError:
    raise
  except Exception as error:  # The description may hold any arguments.
    raise errors.ConfigError(f'path: {str(path)!r} does not describe its model '
                             f'({errors.first_line(error)}); export it again') from error
  return module, _load(path, like, 'path', meta), meta


@contextlib.contextmanager
def _at_most(layers: int) -> Iterator[None]:
  """Raises ValueError if more layers are traced: a description can name any depth."""
  count = 0

  def counted(layer, args, kwargs, context):
    nonlocal count
    count += context.method_name == '__call__'
    if count > layers:
      raise ValueError('the model has far more layers than the variables have arrays')
    return layer(*args, **kwargs)

  with nn.intercept_methods(counted):
    yield


def describe(path: epath.PathLike, setting: str = 'path') -> dict:
  """Returns the description of exported variables after a check, see `run_files.ExportedMeta`.

  Args:
    path: a `variables` folder.
    setting: the setting that names the folder, for the error.

  Raises:
    ConfigError: there are no exported variables at `path`, or they are damaged.
  """
  path = files.given(setting, path)
  if not files.exists(path / 'meta'):
    raise errors.ConfigError(
        f'{setting}: no exported variables at {str(path)!r}; give the `variables` folder of a '
        'finished phase, such as runs/x/teacher/variables')
  try:
    stored = orbax_files.read_meta(path)
    msgspec.convert(stored, run_files.ExportedMeta)
    meta = {name: value for name, value in stored.items() if name != 'digests'}
    unchanged = stored['digests']['meta'] == digests_lib.of_json(meta)
  except errors.ConfigError:
    raise
  except Exception as error:  # orbax raises many kinds.
    raise _damaged(setting, path, orbax_files.damage(error)) from error
  if not unchanged:
    raise _damaged(setting, path, 'their description is not the one that was written')
  return stored


def load_teacher(
    path: epath.PathLike, config: 'ml_collections.ConfigDict', built: Networks,
    finished: dict | None = None,
) -> tuple[Variables, dict]:
  """Returns the teacher's variables at `path`, and their description.

  If the teacher's images were normalised with another mean or std than `config.data` has, the
  variables also hold `taps.INPUT`, which converts between the two.

  Args:
    path: a `variables` folder.
    config: of the run.
    built: its networks.
    finished: the result of the phase in whose folder the variables are; None for other folders.

  Raises:
    ConfigError: there are no variables, they are damaged, they belong to another architecture, to
      other classes or another order of classes, or to another result than `finished`.
  """
  setting = 'config.teacher.variables' if finished is None else '--workdir'
  wanted = describe_model(config, 'teacher', built.spec.num_classes)
  meta = describe(path, setting)
  _check_finished(path, meta, finished)
  _compare(setting, path, meta['model'], wanted)
  data = meta.get('data') or {}
  _compare_classes(setting, path, data.get('classes'), built.spec.classes)
  own = _input(setting, path, data, config, built.spec.image_shape[-1])
  return {**_load(path, built.teacher_variables, setting, meta), **own}, meta


def load_heads(
    path: epath.PathLike, built: Networks, teacher: str | None, finished: dict | None = None
) -> tuple[Variables, dict]:
  """Returns the heads' variables at `path`, and their description.

  Args:
    path: a `variables` folder.
    built: the networks of the run.
    teacher: fingerprint of the teacher that the heads must have been trained on; None if it is not
      known yet.
    finished: the result of the phase in whose folder the variables are; None for other folders.

  Raises:
    ConfigError: there are no variables, they are damaged, they belong to other taps, to another
      kind of heads, to another teacher, or to another result than `finished`.
  """
  setting = 'config.heads.variables' if finished is None else '--workdir'
  meta = describe(path, setting)
  _check_finished(path, meta, finished)
  _compare(setting, path, meta['model'], describe_heads(built))
  order = list(meta['model']['taps'])
  if finished is not None and order != list(built.taps):  # An earlier version sorted them.
    raise errors.ConfigError(
        f'{setting}: the heads at {str(path)!r} are those of the taps {order}, in this order; set '
        f'config.heads.taps={",".join(order)}, with --accept=config, or choose another folder')
  if teacher is not None and meta.get('teacher') != teacher:
    raise errors.ConfigError(
        f'{setting}: the heads at {str(path)!r} belong to another teacher; train heads on this '
        'one, or set config.teacher.variables to theirs')
  return _load(path, networks.abstract_heads(built), setting, meta), meta


def load(path: epath.PathLike, like: Any, setting: str) -> Variables:
  """Returns exported variables of a known model, as numpy arrays.

  Args:
    path: a `variables` folder that `save` wrote.
    like: variables or `jax.ShapeDtypeStruct`s of the same structure and shapes.
    setting: the config field that names the folder, for the error.

  Raises:
    ConfigError: there are no variables, they are damaged, or they have another structure or other
      shapes.
  """
  return _load(path, like, setting, describe(path, setting))


def _load(path: epath.PathLike, like: Any, setting: str, meta: dict) -> Variables:
  """Returns what `load` does, given the description."""
  path = files.given(setting, path)
  wanted = {name: tuple(leaf.shape) for name, leaf in orbax_files.named_leaves(like).items()}
  # Compared before anything is read: a small file can hold arrays that fill the memory.
  if _stored_shapes(path, setting) != wanted:
    raise errors.ConfigError(
        f'{setting}: the variables at {str(path)!r} are not of this model; name the model and '
        'the classes that they were trained with')
  try:
    stored, size = cost.bytes_on_disk(path), 4 * sum(map(math.prod, wanted.values()))
    if size > _MAX_RATIO * stored:
      raise ValueError(f'{size:,} bytes of arrays are compressed to {stored:,}')
    variables = orbax_files.restore(path)
  except Exception as error:  # orbax and tensorstore raise many kinds.
    raise _damaged(setting, path, orbax_files.damage(error)) from error
  if digests_lib.of(variables) != meta['digests']['variables']:
    raise _damaged(setting, path, 'they are not those that were written')
  return variables


def _stored_shapes(path: epath.PathLike, setting: str) -> orbax_files.Shapes:
  """Returns the shapes of the stored arrays. Raises ConfigError if their list is damaged."""
  try:
    return orbax_files.shapes(path, 'variables')
  except Exception as error:  # orbax and tensorstore raise many kinds.
    raise _damaged(setting, path, orbax_files.damage(error)) from error


def check_exported(folder: epath.Path, finished: dict) -> None:
  """Checks what a finished phase has exported; logs a warning if it is missing.

  Args:
    folder: of the phase.
    finished: its result.

  Raises:
    ConfigError: the variables are damaged, or are not those that the result names.
  """
  path = folder / 'variables'
  if files.exists(path / 'meta'):
    _check_finished(path, describe(path, '--workdir'), finished)
  else:
    logger.warning(f'{path}: there are no exported variables; remove {folder / "result.json"} to '
                   'have them made again from the checkpoints')


def _check_finished(path: epath.PathLike, meta: dict, finished: dict | None) -> None:
  """Raises ConfigError unless the result of the phase names the variables."""
  if finished is None or finished.get('fingerprint') == fingerprint(meta):
    return
  folder = epath.Path(path).parent
  raise errors.ConfigError(
      f'--workdir: {str(path)!r} does not hold the variables that {folder / "result.json"} names; '
      f'restore the folder from a copy, or remove {folder} to run the phase again')


def _compare_classes(
    setting: str, path: epath.PathLike, stored: list[str] | None, here: tuple[str, ...]
) -> None:
  """Raises ConfigError unless the classes and their order are the same, or one is unknown."""
  if not (stored and here):
    return
  if len(stored) != len(here):
    raise _damaged(setting, path, 'their description lists another number of classes')
  for number, (name, name_here) in enumerate(zip(stored, here, strict=True)):
    if name != name_here:
      raise errors.ConfigError(
          f'{setting}: the teacher at {str(path)!r} was trained with other classes, or with these '
          f'in another order: its class {number} is {name!r}, here it is {name_here!r}; choose a '
          'teacher that was trained with these in this order, or train one')


def _input(
    setting: str, path: epath.PathLike, data: dict, config: 'ml_collections.ConfigDict',
    channels: int,
) -> Variables:
  """Returns {`taps.INPUT`: ...} for a model with the normalisation in `data`; {} if it is ours."""
  try:
    mean, std = _normalisation(data, channels)
    if not (np.isfinite([mean, std]).all() and (std > 0).all()):
      raise ValueError('no image can be normalised with them')
  except (KeyError, TypeError, ValueError) as error:
    raise _damaged(setting, path, 'the mean and std of their images are missing or wrong: '
                   f'{errors.first_line(error)}') from error
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
      f'{setting}: the variables at {str(path)!r} are damaged, or an early version of kdih wrote '
      f'them ({errors.in_line(reason)}); restore the folder from a copy, or train them again')


def _compare(setting: str, path: epath.PathLike, stored: dict, wanted: dict) -> None:
  wanted = msgspec.json.decode(run_files.encode(wanted))  # Tuples become lists, as in a file.
  other = [f'{key} is {stored.get(key)!r} there and {value!r} here'
           for key, value in wanted.items() if stored.get(key) != value]
  if other:
    raise errors.ConfigError(f'{setting}: {str(path)!r} holds another model: {"; ".join(other)}')
