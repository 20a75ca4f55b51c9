"""Checks of a model in the modes in which a run applies it, by tracing."""
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors
from kdih.models import taps as taps_lib
from kdih.models.taps import EMBEDDING, FOLDED, INPUT, Output, Shapes, Traced, Variables

# Collections that kdih adds to a model's variables, and what they hold.
RESERVED = {INPUT: 'of its input', FOLDED: 'of folded batch norms', 'memory': 'of methods'}


def check_evaluation(
    model: nn.Module, image_shape: Sequence[int], num_classes: int, setting: str
) -> None:
  """Raises ConfigError unless `model` can be initialised and returns `num_classes` logits.

  Args:
    model: from `registry.create`.
    image_shape: height, width, channels.
    num_classes: of the data set.
    setting: the config field that names the model, for errors.
  """
  applied = f'{setting}: cannot be applied to {_images(image_shape)}: '
  with errors.of_users_code(applied):
    variables = taps_lib.abstract_variables(model, image_shape)
  _check_variables(variables, setting)
  with errors.of_users_code(applied, _in_evaluation):
    traced = taps_lib.trace(model, image_shape)
  _check_logits(traced, image_shape, num_classes, setting, '')


def check_training(
    model: nn.Module, image_shape: Sequence[int], num_classes: int, num_examples: int,
    setting: str,
) -> None:
  """Raises ConfigError unless `model`, which passed `check_evaluation`, can be trained.

  Args:
    model: from `registry.create`.
    image_shape: height, width, channels.
    num_classes: of the data set.
    num_examples: the number of images in a device's part of a batch.
    setting: the config field that names the model, for errors.
  """
  with errors.of_users_code(f'{setting}: cannot be trained on {num_examples} '
                            f'{_images(image_shape)}: ', _in_training):
    traced = taps_lib.trace_training(model, image_shape, num_examples)
  _check_logits(traced, image_shape, num_classes, setting, ' in training mode')
  before = taps_lib.abstract_variables(model, image_shape)
  check_collections({name: before[name] for name in taps_lib.changing(before)}, traced.collections,
                    setting)
  for path, leaf in _leaves(traced.collections).items():
    if not jnp.issubdtype(leaf.dtype, jnp.inexact) and path in traced.varying:
      raise errors.ConfigError(
          f'{setting}: the variable {path} is {_described(leaf)} and depends on images or random '
          'numbers, which differ between devices; make it float32, to keep the mean')


def check_taps(
    model: nn.Module, image_shape: Sequence[int], num_examples: int, taps: Shapes, setting: str
) -> None:
  """Raises ConfigError unless taps, preactivations and embedding are the same in training mode.

  Args:
    model: a model that passed `check_training`.
    image_shape: height, width, channels.
    num_examples: the number of images in a device's part of a batch.
    taps: from `choose_taps`.
    setting: the config field that names the taps, for errors.
  """
  traced = (taps_lib.trace(model, image_shape),
            taps_lib.trace_training(model, image_shape, num_examples))
  there = traced[1].features()
  before, now = (_sown_shapes(one.output([tap for tap in taps if tap in there], 1))
                 for one in traced)
  before |= {f'the tap {tap!r}': shape for tap, shape in taps.items() if tap not in there}
  for name in sorted(before.keys() | now.keys()):
    if before.get(name) != now.get(name):
      was, becomes = (f'of shape {shapes[name]}' if name in shapes else 'not there'
                      for shapes in (before, now))
      raise errors.ConfigError(
          f'{setting}: {name} is {was} for an image in evaluation mode and {becomes} in training '
          'mode; make it the same in both, or choose other taps')


def check_collections(before: Variables, after: Variables, setting: str) -> None:
  """Raises ConfigError unless variables keep names, shapes and dtypes when they change."""
  was, now = _leaves(before), _leaves(after)
  for path in sorted(was.keys() | now.keys()):
    if _described(was.get(path)) != _described(now.get(path)):
      raise errors.ConfigError(
          f'{setting}: the variable {path} is {_described(was.get(path))} at first and '
          f'{_described(now.get(path))} after a step; keep its shape and type, and sow '
          "what is no state into 'intermediates'")


def _check_variables(variables: Variables, setting: str) -> None:
  if not jax.tree.leaves(variables.get('params')):
    raise errors.ConfigError(f'{setting}: has no parameters; name a model that can be trained')
  for name in sorted(RESERVED.keys() & variables.keys()):
    raise errors.ConfigError(f'{setting}: has a collection {name!r}, which is the name of that '
                             f'{RESERVED[name]}; give it another name')
  for path, leaf in _leaves(variables).items():
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise errors.ConfigError(
          f'{setting}: the variable {path} is {_described(leaf)}; keep only arrays of numbers, '
          'and draw keys by make_rng')


def _check_logits(
    traced: Traced, image_shape: Sequence[int], num_classes: int, setting: str, mode: str
) -> None:
  needed, logits = (traced.num_examples, num_classes), traced.logits
  of = f'for {traced.num_examples} of the {_images(image_shape)}{mode}; '
  if not hasattr(logits, 'dtype'):
    raise errors.ConfigError(f'{setting}: gives a {type(logits).__name__} {of}logits of shape '
                             f'{needed} are needed')
  if logits.shape != needed:
    raise errors.ConfigError(f'{setting}: gives an array of shape {logits.shape} {of}logits of '
                             f'shape {needed} are needed')
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise errors.ConfigError(f'{setting}: gives logits of type {logits.dtype} {of}floating-point '
                             'numbers are needed')


def _in_evaluation(error: BaseException) -> str | None:
  if isinstance(error, flax.errors.InvalidRngError):
    return (f'it draws random numbers ({taps_lib.missing_stream(error)!r}) in evaluation mode; '
            'draw them only if `train` is set')
  if isinstance(error, flax.errors.ModifyScopeVariableError):
    return ('it changes a variable in evaluation mode; change it only if `train` is set: '
            f'{errors.first_line(error)}')
  return None


def _in_training(error: BaseException) -> str | None:
  missing = (flax.errors.ScopeCollectionNotFound, flax.errors.ScopeParamNotFoundError,
             flax.errors.ScopeVariableNotFoundError)
  if isinstance(error, missing):
    return ('it makes variables in training mode that it lacks in evaluation mode, in which it is '
            f'initialised; make them in both: {errors.first_line(error)}')
  return None


def _sown_shapes(output: Output) -> Shapes:
  """Returns {description: shape for one example} of all sown values."""
  values = {**{f'the tap {tap!r}': x for tap, x in output.features.items()},
           **{f'the preactivation of {tap!r}': x for tap, x in output.preactivations.items()},
           **({} if output.embedding is None else {repr(EMBEDDING): output.embedding})}
  return {name: x.shape[1:] for name, x in values.items()}


def _images(image_shape: Sequence[int]) -> str:
  height, width, channels = image_shape
  return f'{height}x{width}x{channels} images'


def _leaves(tree: Any) -> dict[str, Any]:
  return {jax.tree_util.keystr(path): leaf
          for path, leaf in jax.tree.leaves_with_path(tree)}


def _described(leaf: Any) -> str:
  if leaf is None:
    return 'not there'
  return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
