"""The image classifiers, by name: teachers and students alike.

Every model is called as `model.apply(variables, images, train=...)`, images float
[batch, H, W, C] -> float32 logits [batch, num_classes], and sows its taps `stage1` ... `stageN`,
each [batch, height, width, channels], into the collection `intermediates`, together with its
`embedding`, the input of its classifier: float32 [batch, width]. The array before a tap's last ReLU
has the tap's name in the collection `preactivations`.
"""
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from kdih import errors
from kdih.models import mobilenet, resnet, shufflenet, vgg, vit, wide_resnet

_MODELS: dict[str, Callable[..., nn.Module]] = {
    **resnet.MODELS, **wide_resnet.MODELS, **vgg.MODELS, **mobilenet.MODELS,
    **shufflenet.MODELS, **vit.MODELS}


def names() -> tuple[str, ...]:
  """Returns the registered names, sorted."""
  return tuple(sorted(_MODELS))


def find(name: str, setting: str) -> Callable[..., nn.Module]:
  """Returns the function or class that makes the model `name`.

  Args:
    name: as for `create`.
    setting: the config field that names the model, for errors.

  Raises:
    ConfigError: there is no such model.
  """
  if not isinstance(name, str):
    raise errors.unknown(setting, name, names())
  factory = _imported(name, setting) if ':' in name else _MODELS.get(name)
  if factory is None:
    raise errors.unknown(setting, name, names())
  return factory


def create(name: str, num_classes: int, *, dtype: Any = jnp.float32, axis_name: str | None = None,
           setting: str = 'model', **kwargs: Any) -> nn.Module:
  """Makes a model.

  Args:
    name: a registered name, or 'my_pkg.nets:MyNet', a linen module class.
    num_classes: the number of logits.
    dtype: the dtype to compute in; a class of the user's gets it only if it has the field.
    axis_name: the axis over which to synchronise batch norms; passed on as `dtype` is.
    setting: the config field that names the model, for errors.
    **kwargs: further fields of the class.

  Raises:
    ConfigError: there is no such model, or it cannot be made with these fields.
  """
  factory = find(name, setting)
  fields = inspect.signature(factory).parameters
  common = {'dtype': dtype, 'axis_name': axis_name}
  kwargs = {key: value for key, value in common.items() if key in fields} | kwargs
  kwargs['num_classes'] = num_classes
  try:
    inspect.signature(factory).bind(**kwargs)
  except TypeError as error:
    known = ', '.join(key for key in fields if key not in ('parent', 'name'))
    raise errors.ConfigError(f'{setting}: {name!r} {error}; its fields: {known}') from error
  with errors.of_users_code(f'{setting}: {name!r} cannot be made: '):
    return factory(**kwargs)


def _imported(path: str, setting: str) -> type[nn.Module]:
  """Imports the linen module class at `path`, 'module:Class'."""
  module_name, class_name = path.split(':', 1)
  if not module_name or module_name.startswith('.'):
    raise errors.ConfigError(
        f'{setting}: cannot import {module_name!r} (not a full name); give a name such as '
        'my_pkg.nets:MyNet')
  with errors.of_users_code(f'{setting}: cannot import {module_name!r} ', _why_not_imported):
    module = importlib.import_module(module_name)
    found = getattr(module, class_name, None)
  if found is None:
    raise errors.ConfigError(f'{setting}: {module_name!r} has no attribute {class_name!r}')
  if not (isinstance(found, type) and issubclass(found, nn.Module)):
    raise errors.ConfigError(f'{setting}: {path!r} is not a flax.linen.Module class; name '
                             'one')
  return found


def _why_not_imported(error: BaseException) -> str:
  reason = errors.first_line(error)
  if isinstance(error, ModuleNotFoundError):
    return f'({reason}); is it on PYTHONPATH?'
  return f'({type(error).__name__}: {reason}); fix the code that runs when it is imported'
