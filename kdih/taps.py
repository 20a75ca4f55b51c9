"""Taps: the named activations of a linen module that heads and feature methods read."""
import re
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors

Variables = dict[str, Any]
Features = dict[str, jax.Array]

_OUTPUT = '/__call__'  # Where flax files the output of a submodule.


def apply_with_taps(
    model: nn.Module, variables: Variables, images: jax.Array, taps: Sequence[str]
) -> tuple[jax.Array, Features]:
  """Applies `model` in evaluation mode and returns its logits and the features at `taps`.

  A tap is a name that the model sows into 'intermediates', or the path of one of its submodules
  ('Block_3/Conv_0'), whose output it then is.

  Args:
    model: a module with `__call__(images, train)`.
    variables: its {'params', 'batch_stats'}.
    images: float [batch, height, width, channels].
    taps: names, in the order in which the features are wanted.
  """
  logits, state = model.apply(
      variables, images, train=False, mutable=['intermediates'],
      capture_intermediates=lambda module, _: '/'.join(module.path) in taps)
  features = _flatten(state)
  return logits, {tap: features[tap] for tap in taps}


def _flatten(state: Any) -> Features:
  flat = flax.traverse_util.flatten_dict(
      flax.core.unfreeze(state.get('intermediates', {})), sep='/')
  return {name.removesuffix(_OUTPUT): value[-1] if isinstance(value, tuple) else value
          for name, value in flat.items()}


def abstract_variables(model: nn.Module, image_shape: Sequence[int]) -> Variables:
  """Shapes and dtypes of the model's variables; nothing is computed."""
  return _init_shapes(model, _one_image(image_shape))


def _init_shapes(model: nn.Module, image: jax.ShapeDtypeStruct) -> Variables:
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return {name: shapes[name] for name in ('params', 'batch_stats') if name in shapes}


def _one_image(image_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def choose_taps(
    model: nn.Module, image_shape: Sequence[int], wanted: Sequence[str]
) -> dict[str, tuple[int, ...]]:
  """The taps to mount heads on, {name: shape of one example's feature}, in order.

  Args:
    model: the teacher.
    image_shape: height, width, channels.
    wanted: names from the config; empty for every tap that the model sows.

  Raises:
    ConfigError: the model sows no taps and none is named, or a named one does not exist.
  """
  sown, outputs = _all_taps(model, image_shape)
  if not sown and not wanted:
    raise errors.ConfigError(
        f'config.heads.taps: {type(model).__name__} sows no taps; name submodules instead, from: '
        + ', '.join(outputs))
  for tap in wanted:
    if tap not in sown | outputs:
      raise errors.ConfigError(
          f'config.heads.taps: unknown {tap!r}; {errors.closest(tap, sown | outputs)}choose from: '
          f'{", ".join(sorted(sown or outputs, key=_natural))}'
          + ('; or any submodule, by its path' if sown else ''))
  return {tap: (sown | outputs)[tap] for tap in wanted or sorted(sown, key=_natural)}


def _all_taps(model: nn.Module, image_shape: Sequence[int]):
  image = _one_image(image_shape)
  variables = _init_shapes(model, image)

  def features(capture: bool) -> dict[str, tuple[int, ...]]:
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, mutable=['intermediates'],
                                 capture_intermediates=capture), variables, image)
    return {name: value.shape[1:] for name, value in _flatten(state).items()
            if name != _OUTPUT[1:] and hasattr(value, 'shape')}

  sown = features(False)
  return sown, {name: shape for name, shape in features(True).items() if name not in sown}


def _natural(name: str) -> list:
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


def check_model(
    model: nn.Module, image_shape: Sequence[int], num_classes: int, setting: str
) -> None:
  """Raises ConfigError unless `model` maps such images to logits of `num_classes`."""
  def forward(image):
    variables = model.init(jax.random.key(0), image, train=False)
    return model.apply(variables, image, train=False)

  height, width, channels = image_shape
  images = f'{height}x{width}x{channels} images'
  try:
    shape = jax.eval_shape(forward, _one_image(image_shape)).shape
  except Exception as error:  # Whatever a user's module raises.
    reason = errors.first_line(error)
    raise errors.ConfigError(f'{setting}: cannot be applied to {images}: {reason}') from error
  if shape != (1, num_classes):
    raise errors.ConfigError(f'{setting}: gives an array of shape {shape} for one of the '
                             f'{images}; logits of shape {(1, num_classes)} are needed')
