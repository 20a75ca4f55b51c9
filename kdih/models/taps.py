"""Taps: the named activations of a linen module that heads and feature methods read."""
import dataclasses
import functools
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors
from kdih.runtime import devices

Variables = dict[str, Any]
# By tap, from the shallowest to the deepest; jax sorts the keys of a plain dict.
Features = OrderedDict[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]
_Result = TypeVar('_Result')

EMBEDDING = 'embedding'  # The name under which models sow the input of their classifier.
# The collection of the shifts of folded batch norms; see `kdih.cohort.frozen_teacher`.
FOLDED = 'folded'
# The collection of 'scale' and 'shift', which convert images to those a model was trained with.
INPUT = 'input'
SOWN = ('intermediates', 'preactivations')  # Collections that models write and never read.
DROPOUT = 'dropout'  # The stream of random numbers that every model has.
_OUTPUT = '/__call__'  # The end of the path under which Flax stores a submodule's output.
# The number of images in a traced evaluation. It is a number that is unlikely as another dimension:
# an array of this length is taken to have a row for each image.
_EXAMPLES = 13
_KEPT_TRACES = 64


@flax.struct.dataclass
class Output:
  """The output of a model for a batch, all float32; a pytree.

  Attributes:
    logits: [batch, classes].
    features: {tap: [batch, height, width, channels]}, from the shallowest to the deepest.
    preactivations: {tap: the array before the feature's last ReLU}, for the taps for which the
      model sows it into the collection `preactivations`.
    embedding: the input of the classifier, [batch, width]; None if the model does not sow it.
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
  """Applies `model` and returns its output, with its features at `taps`.

  A tap is a name that the model sows into 'intermediates', or the path of a submodule, such as
  'Block_3/Conv_0', for the output of that submodule.

  Args:
    model: a module with `__call__(images, train)`, whose result `logits_of` accepts.
    variables: its variables, as `initial` returns them; with `FOLDED` if batch norms are folded,
      and with `INPUT`, a scale and a shift of the images, [channels] each, if it was trained with
      images that are normalised otherwise.
    images: float [batch, height, width, channels].
    taps: names, in the order of the features in the output.
    train: whether batch norms use the statistics of the batch, and dropout is active.
    key: the key of all random numbers; see `with_streams`. None if there are none.

  Returns:
    The output, and the collections that training changes, after the call; {} unless `train`.
  """
  logits, state = _apply(model, variables, images, train, key,
                         lambda module, _: '/'.join(module.path) in taps)
  features = _flatten(state, 'intermediates')
  before = _flatten(state, 'preactivations')
  embedding = features.get(EMBEDDING)
  output = Output(
      jnp.asarray(logits, jnp.float32),
      OrderedDict((tap, _float32(features[tap])) for tap in taps),
      OrderedDict((tap, _float32(before[tap])) for tap in taps
                  if is_feature(before.get(tap), len(images))),
      _float32(embedding) if is_feature(embedding, len(images)) else None)
  return output, {name: state[name] for name in changing(variables)} if train else {}


def _apply(
    model: nn.Module, variables: Variables, images: jax.Array, train: bool,
    key: jax.Array | None, capture: Callable | bool,
) -> tuple[Any, Variables]:
  """Returns the logits, and the collections that are sown or changed."""
  own = variables.get(INPUT)
  if own:
    images = images * _per_channel(own['scale']) + _per_channel(own['shift'])
    variables = without_input(variables)

  def apply(rngs: dict[str, jax.Array] | None):
    with nn.intercept_methods(_shift_only):
      return model.apply(
          variables, images, train=train, rngs=rngs, capture_intermediates=capture,
          mutable=[*SOWN, *(changing(variables) if train else ())])

  result, state = apply(None) if key is None else with_streams(apply, key)
  return logits_of(result), state


def logits_of(result: Any) -> Any:
  """Returns the logits in the result of a model.

  These are `logits` of a dict or of an object with a field of that name, the first item of a tuple
  or list, and otherwise the result itself.

  Raises:
    ValueError: the result is a dict without 'logits', or an empty list.
  """
  if isinstance(result, Mapping):
    if 'logits' not in result:
      raise ValueError(f"it returns a dict with the keys {sorted(map(str, result))}; "
                       "put the logits under the key 'logits'")
    return result['logits']
  if not hasattr(result, 'shape') and hasattr(result, 'logits'):
    return result.logits
  if isinstance(result, tuple | list):
    if not result:
      raise ValueError('it returns nothing; return the logits')
    return result[0]
  return result


def with_streams(apply: Callable[[dict[str, jax.Array]], _Result], key: jax.Array) -> _Result:
  """Returns `apply(rngs)`, with a key for each stream of random numbers that a module draws from.

  The stream 'dropout' gets `key` itself; the keys of other streams depend on `key` and their names
  alone. Flax names a missing stream in an error: the module is traced again for each one.

  Args:
    apply: function from {stream: key} to the result of the module.
    key: the key from which all keys are derived.
  """
  names = [DROPOUT]
  while True:
    try:
      return apply(stream_keys(names, key))
    except flax.errors.InvalidRngError as error:
      name = missing_stream(error)
      if name is None or name in names:
        raise
      names.append(name)


def stream_keys(names: Iterable[str], key: jax.Array) -> dict[str, jax.Array]:
  """Returns the key of each stream of random numbers; see `with_streams`."""
  return {name: key if name == DROPOUT else jax.random.fold_in(key, zlib.crc32(name.encode()))
          for name in names}


def missing_stream(error: flax.errors.InvalidRngError) -> str | None:
  """Returns the name of the missing stream of random numbers; None if it is unknown."""
  found = re.search(r'needs PRNG for "(.*)"', str(error), re.DOTALL)
  return found[1] if found else None


def _shift_only(next_function, args, kwargs, context):
  """Intercepts a folded batch norm: only its shift is added."""
  module: Any = context.module
  if not (isinstance(module, nn.BatchNorm) and module.has_variable(FOLDED, 'shift')):
    return next_function(*args, **kwargs)
  inputs: jax.Array = args[0]
  shift: jax.Array = module.get_variable(FOLDED, 'shift')
  shifted = inputs + shift.reshape((1,) * (inputs.ndim - 1) + (-1,))
  return shifted if module.dtype is None else shifted.astype(module.dtype)


def without_input(variables: Variables) -> Variables:
  """Returns the model's own variables, without the collection `INPUT`."""
  return {name: tree for name, tree in variables.items() if name != INPUT}


def _per_channel(numbers: jax.Array) -> jax.Array:
  return jnp.asarray(numbers, jnp.float32).reshape(1, 1, 1, -1)


def _float32(array: Any) -> jax.Array:
  return jnp.asarray(array, jnp.float32)


def _flatten(state: Any, collection: str) -> dict[str, Any]:
  """Returns {path: the last value that was sown}; an output has the path of its module."""
  flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(state.get(collection, {})), sep='/')
  return {name.removesuffix(_OUTPUT): value[-1] if isinstance(value, tuple) else value
          for name, value in flat.items()}


def is_feature(value: Any, num_examples: int) -> bool:
  """Returns whether a sown value is an array of real numbers with a row for each example."""
  if not (hasattr(value, 'shape') and hasattr(value, 'dtype')):
    return False
  kinds = (jnp.floating, jnp.integer, jnp.bool_)
  return value.ndim > 1 and value.shape[0] == num_examples and any(
      jnp.issubdtype(value.dtype, kind) for kind in kinds)


def abstract_variables(model: nn.Module, image_shape: Sequence[int]) -> Variables:
  """Returns shapes and dtypes of the model's variables, by tracing."""
  return _once_for_equal(_abstract_variables, model, tuple(image_shape))


def _abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> Variables:
  return jax.eval_shape(
      lambda image: initial(model, jax.random.key(0), image),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def initial(model: nn.Module, key: jax.Array, images: jax.Array) -> Variables:
  """Returns fresh variables: `params`, and all other collections that the model keeps."""
  return kept(dict(model.init(key, images, train=False)))


def kept(variables: Variables) -> Variables:
  """Returns variables without sown collections and without axis names of partitioning.

  Flax sows tuples: a collection of tuples alone is taken for a sown one.
  """
  def is_sown(tree: Any) -> bool:
    leaves = flax.traverse_util.flatten_dict(flax.core.unfreeze(tree)).values()
    return all(isinstance(leaf, tuple) for leaf in leaves)

  return {name: nn.meta.unbox(tree) for name, tree in variables.items()
          if name == 'params' or not (name in SOWN or is_sown(tree))}


def changing(variables: Iterable[str]) -> list[str]:
  """Returns the names of the collections that a forward pass in training changes."""
  return [name for name in variables if name not in ('params', INPUT, FOLDED)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
  """Shapes and dtypes of a model's outputs, found by tracing.

  Attributes:
    num_examples: the number of images.
    logits: the value that stands for the logits, whatever it is.
    own: {name: value} that the model sows.
    outputs: {path: value} of its submodules.
    preactivations: {name: value}.
    collections: the collections that training changes, after it; {} in evaluation mode.
    varying: the paths of the leaves of `collections` that depend on images or random numbers, and
      therefore differ between devices.
  """

  num_examples: int
  logits: Any
  own: dict[str, Any]
  outputs: dict[str, Any]
  preactivations: dict[str, Any]
  collections: Variables
  varying: frozenset[str]

  def features(self) -> dict[str, Any]:
    """Returns all values that can be taps, by name."""
    return {name: value for name, value in {**self.outputs, **self.own}.items()
            if name != EMBEDDING and is_feature(value, self.num_examples)}

  def output(self, taps: Iterable[str], num_examples: int) -> Output:
    """Returns the shapes of the output of `observe` for `num_examples` images."""
    def float32(value: Any) -> Any:
      return jax.ShapeDtypeStruct((num_examples, *value.shape[1:]), jnp.float32)

    features, embedding = self.features(), self.own.get(EMBEDDING)
    return Output(
        float32(self.logits), OrderedDict((tap, float32(features[tap])) for tap in taps),
        OrderedDict((tap, float32(self.preactivations[tap])) for tap in taps
                    if is_feature(self.preactivations.get(tap), self.num_examples)),
        float32(embedding) if is_feature(embedding, self.num_examples) else None)


def trace(model: nn.Module, image_shape: Sequence[int]) -> Traced:
  """Traces the model in evaluation mode."""
  return _once_for_equal(_trace, model, tuple(image_shape))


def trace_training(model: nn.Module, image_shape: Sequence[int], num_examples: int) -> Traced:
  """Traces the model and its gradients in training mode."""
  return _once_for_equal(_trace_training, model, tuple(image_shape), num_examples)


def _once_for_equal(function: Callable[..., _Result], model: nn.Module, *arguments: Any) -> _Result:
  """Returns `function(model, *arguments)`, traced once for all equal models."""
  try:
    hash(model)
  except TypeError:  # A field of the model is an array, for example.
    return function(model, *arguments)
  return _traced_once(function, model, jax.config.values['jax_enable_x64'], *arguments)


@functools.lru_cache(_KEPT_TRACES)
def _traced_once(
    function: Callable[..., _Result], model: nn.Module, x64: bool, *arguments: Any
) -> _Result:
  del x64  # Part of the key, because types depend on it.
  return function(model, *arguments)


def _trace(model: nn.Module, image_shape: tuple[int, ...]) -> Traced:
  traced: list[Traced] = []

  def evaluate(variables, images):
    logits, state = _apply(model, variables, images, False, None, True)
    traced.append(_traced(logits, state, (), _EXAMPLES))
    return ()

  jax.eval_shape(evaluate, abstract_variables(model, image_shape),
                 jax.ShapeDtypeStruct((_EXAMPLES, *image_shape), jnp.float32))
  return traced[0]


def _trace_training(
    model: nn.Module, image_shape: tuple[int, ...], num_examples: int
) -> Traced:
  traced: list[Traced] = []

  def learn(variables, images, seed):
    rest = {name: variables[name] for name in changing(variables)}

    def loss(params):
      logits, state = _apply(model, {'params': params, **rest}, images, True,
                             jax.random.key(seed), True)
      traced.append(_traced(logits, state, rest, num_examples))
      numbers = jnp.asarray(logits, jnp.float32).sum() if hasattr(logits, 'dtype') else 0.0
      return numbers, {name: state[name] for name in rest}

    return jax.grad(loss, has_aux=True)(variables['params'])[1]

  arguments = (abstract_variables(model, image_shape),
               jax.ShapeDtypeStruct((num_examples, *image_shape), jnp.float32),
               jax.ShapeDtypeStruct((), jnp.uint32))
  program, collections = jax.make_jaxpr(
      learn, axis_env=[(devices.AXIS, 1)], return_shape=True)(*arguments)
  varying = _depending(program.jaxpr, len(jax.tree.leaves(arguments[0])))
  paths = [jax.tree_util.keystr(path)
           for path, _ in jax.tree.leaves_with_path(collections)]
  return dataclasses.replace(traced[-1], varying=frozenset(
      path for path, varies in zip(paths, varying, strict=True) if varies))


def _depending(program: Any, first: int) -> list[bool]:
  """Returns which results of a program may depend on its arguments from `first` on."""
  depending = {id(variable) for variable in program.invars[first:]}
  for equation in program.eqns:
    if depending & {id(read) for read in equation.invars}:
      depending |= {id(written) for written in equation.outvars}
  return [id(result) in depending for result in program.outvars]


def _traced(logits: Any, state: Variables, changed: Iterable[str], num_examples: int) -> Traced:
  def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                        if hasattr(leaf, 'dtype') else leaf, tree)

  flat = flax.traverse_util.flatten_dict(
      flax.core.unfreeze(state.get('intermediates', {})), sep='/')
  paths = {name.removesuffix(_OUTPUT) for name in flat if name.endswith(_OUTPUT)}
  values = {name: shapes(value) for name, value in _flatten(state, 'intermediates').items()}
  values.pop(_OUTPUT[1:], None)  # The result of the model itself.
  return Traced(
      num_examples=num_examples,
      logits=shapes(logits),
      own={name: value for name, value in values.items() if name not in paths},
      outputs={name: value for name, value in values.items() if name in paths},
      preactivations=shapes(_flatten(state, 'preactivations')),
      collections={name: shapes(state[name]) for name in changed},
      varying=frozenset())


def choose_taps(
    model: nn.Module, image_shape: Sequence[int], wanted: Sequence[str],
    setting: str = 'config.heads.taps',
) -> Shapes:
  """Returns the taps to read, {name: shape of one example's feature}, in order.

  Args:
    model: the model.
    image_shape: height, width, channels.
    wanted: names from the config; empty for every tap that the model sows, in the order in which
      it does, from the shallowest to the deepest.
    setting: the config field that names the taps, for errors.

  Raises:
    ConfigError: the model sows no taps and none is named, or a named one does not exist.
  """
  traced = trace(model, image_shape)
  known = {name: value.shape[1:] for name, value in traced.features().items()}
  own = {name: known[name] for name in traced.own if name in known}
  outputs = [name for name in known if name not in own]
  if not own and not wanted:
    raise errors.ConfigError(
        f'{setting}: {type(model).__name__} sows no taps; name submodules instead, from: '
        + ', '.join(outputs))
  for tap in wanted:
    if tap not in known:
      there = tap in traced.own or tap in traced.outputs
      what = (f'{tap!r} is no array with numbers for each image' if there else f'unknown {tap!r}')
      raise errors.ConfigError(
          f'{setting}: {what}; {"" if there else errors.closest(tap, known)}choose from: '
          f'{", ".join(own or outputs)}'
          + ('; or any submodule, by its path' if own else ''))
  return {tap: known[tap] for tap in wanted or own}


def sown(model: nn.Module, image_shape: Sequence[int]) -> Shapes:
  """Returns the taps that the model sows, {name: shape of one example's feature}, in order."""
  traced = trace(model, image_shape)
  return {name: value.shape[1:] for name, value in traced.features().items()
          if name in traced.own}
