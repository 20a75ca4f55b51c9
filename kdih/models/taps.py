"""Taps: the named activations of a linen module that heads and feature methods read."""
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors

Variables = dict[str, Any]
# By tap, from the shallowest to the deepest; jax keeps the order of this kind of dict alone.
Features = OrderedDict[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]

EMBEDDING = 'embedding'  # Sown beside the taps: what the classifier reads.
# The collection of what is left of folded batch norms; see `kdih.cohort.frozen_teacher`.
FOLDED = 'folded'
# The collection of what makes images those that a model was trained with: 'scale' and 'shift'.
INPUT = 'input'
_OUTPUT = '/__call__'  # Where flax files the output of a submodule.


@flax.struct.dataclass
class Output:
  """What a model says of a batch, all float32: a pytree.

  Attributes:
    logits: [batch, classes].
    features: {tap: [batch, height, width, channels]}, from the shallowest to the deepest.
    preactivations: the same before their last ReLU, of those taps of which the model sows it
      into the collection `preactivations`.
    embedding: what the classifier reads, [batch, width]; None where the model does not sow it.
  """

  logits: jax.Array
  features: Features
  preactivations: Features = flax.struct.field(default_factory=OrderedDict)
  embedding: jax.Array | None = None


def observe(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    taps: Sequence[str],
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> tuple[Output, Variables]:
  """Applies `model` and returns what it says, with its features at `taps`.

  A tap is a name that the model sows into 'intermediates', or the path of one of its submodules
  ('Block_3/Conv_0'), whose output it then is.

  Args:
    model: a module with `__call__(images, train)`.
    variables: its {'params', 'batch_stats'}, `FOLDED` where batch norms are, and `INPUT`, by which
      images are multiplied and what is added to them, [channels] each, where it knows others.
    images: float [batch, height, width, channels].
    taps: names, in the order in which the features are wanted.
    train: batch norms take the statistics of the batch, and dropout drops.
    key: of dropout.

  Returns:
    The output, and {'batch_stats'} after it where `train` is set and the model has any.
  """
  changing = ['batch_stats'] if train and 'batch_stats' in variables else []
  if own := variables.get(INPUT):
    images = images * _per_channel(own['scale']) + _per_channel(own['shift'])
    variables = without_input(variables)
  with nn.intercept_methods(_shift_only):
    logits, state = model.apply(
        variables, images, train=train, mutable=['intermediates', 'preactivations', *changing],
        rngs=None if key is None else {'dropout': key},
        capture_intermediates=lambda module, _: '/'.join(module.path) in taps)
  features = _flatten(state, 'intermediates')
  before = _flatten(state, 'preactivations')
  output = Output(
      jnp.asarray(logits, jnp.float32),
      OrderedDict((tap, _float32(features[tap])) for tap in taps),
      OrderedDict((tap, _float32(before[tap])) for tap in taps if tap in before),
      _float32(features[EMBEDDING]) if EMBEDDING in features else None)
  return output, {name: state[name] for name in changing}


def _shift_only(next_function, args, kwargs, context):
  """Makes a folded batch norm an addition."""
  module: Any = context.module
  if not (isinstance(module, nn.BatchNorm) and module.has_variable(FOLDED, 'shift')):
    return next_function(*args, **kwargs)
  inputs: jax.Array = args[0]
  shift: jax.Array = module.get_variable(FOLDED, 'shift')
  shifted = inputs + shift.reshape((1,) * (inputs.ndim - 1) + (-1,))
  return shifted if module.dtype is None else shifted.astype(module.dtype)


def without_input(variables: Variables) -> Variables:
  """Returns the variables without the collection `INPUT`: those of the model itself."""
  return {name: tree for name, tree in variables.items() if name != INPUT}


def _per_channel(numbers: jax.Array) -> jax.Array:
  return jnp.asarray(numbers, jnp.float32).reshape(1, 1, 1, -1)


def _float32(array: Any) -> jax.Array:
  return jnp.asarray(array, jnp.float32)


def _flatten(state: Any, collection: str) -> dict[str, Any]:
  flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(state.get(collection, {})), sep='/')
  return {name.removesuffix(_OUTPUT): value[-1] if isinstance(value, tuple) else value
          for name, value in flat.items()}


def abstract_variables(model: nn.Module, image_shape: Sequence[int]) -> Variables:
  """Returns shapes and dtypes of the model's variables; nothing is computed."""
  return jax.eval_shape(
      lambda image: initial(model, jax.random.key(0), image), _one_image(image_shape))


def initial(model: nn.Module, key: jax.Array, images: jax.Array) -> Variables:
  """Returns fresh {'params', 'batch_stats'}; the latter only where there are any."""
  variables = model.init(key, images, train=False)
  return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}


def _one_image(image_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def choose_taps(
    model: nn.Module, image_shape: Sequence[int], wanted: Sequence[str],
    setting: str = 'config.heads.taps',
) -> Shapes:
  """Returns the taps to read, {name: shape of one example's feature}, in order.

  Args:
    model: that has them.
    image_shape: height, width, channels.
    wanted: names from the config; empty for every tap that the model sows.
    setting: the field that names them, for the errors.

  Raises:
    ConfigError: the model sows no taps and none is named, or a named one does not exist.
  """
  own, outputs = _all_taps(model, image_shape)
  known = own | outputs
  if not own and not wanted:
    raise errors.ConfigError(
        f'{setting}: {type(model).__name__} sows no taps; name submodules instead, from: '
        + ', '.join(outputs))
  for tap in wanted:
    if tap not in known:
      raise errors.ConfigError(
          f'{setting}: unknown {tap!r}; {errors.closest(tap, known)}choose from: '
          f'{", ".join(sorted(own or outputs, key=_natural))}'
          + ('; or any submodule, by its path' if own else ''))
  return {tap: known[tap] for tap in wanted or sorted(own, key=_natural)}


def sown(model: nn.Module, image_shape: Sequence[int]) -> Shapes:
  """Returns the taps that the model sows, {name: shape of one example's feature}, unordered."""
  return _all_taps(model, image_shape)[0]


def _all_taps(model: nn.Module, image_shape: Sequence[int]) -> tuple[Shapes, Shapes]:
  """Returns the taps that the model sows, and the outputs of its submodules."""
  variables = abstract_variables(model, image_shape)

  def features(capture: bool) -> Shapes:
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, mutable=['intermediates'],
                                 capture_intermediates=capture),
        variables, _one_image(image_shape))
    return {name: value.shape[1:] for name, value in _flatten(state, 'intermediates').items()
            if name not in (_OUTPUT[1:], EMBEDDING) and hasattr(value, 'shape')}

  own = features(False)
  return own, {name: shape for name, shape in features(True).items() if name not in own}


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
