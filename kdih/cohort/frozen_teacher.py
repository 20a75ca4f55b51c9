"""The frozen teacher made quick: its batch norms folded away, its numbers of a chosen type.

What it says stays the same but for rounding: of the sum's order, or of the type.
"""
import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from kdih import errors
from kdih.models import taps as taps_lib
from kdih.models.taps import Variables


@dataclasses.dataclass(frozen=True)
class _Call:
  """A call of a layer, and where its weights are among the leaves of the variables."""

  module: nn.Module
  path: tuple[str, ...]
  weights: dict[str, int]


def check_dtype(model: nn.Module, dtype: str) -> None:
  """Raises ConfigError if `model` cannot compute in `dtype`, that of `config.compute`, or ''."""
  if dtype and 'dtype' not in {field.name for field in dataclasses.fields(model)}:
    raise errors.ConfigError(
        f'config.compute.teacher_dtype: {type(model).__name__} has no field dtype to set to '
        f"{dtype}; give it one, or leave this ''")


def prepare(
    model: nn.Module, variables: Variables, taps: Sequence[str], image_shape: Sequence[int],
    *, fold_batch_norm: bool, dtype: str,
) -> tuple[nn.Module, Variables]:
  """The module and the variables by which `taps.observe` learns what the model says, quickly.

  Args:
    model: the module of a frozen teacher.
    variables: its own, as `taps.observe` takes them.
    taps: all those that will be read.
    image_shape: height, width, channels.
    fold_batch_norm: whether to `fold`.
    dtype: that it computes in; '' for its own.
  """
  if dtype:
    model = model.clone(dtype=jnp.dtype(dtype))
  if fold_batch_norm:
    variables = fold(model, variables, taps, image_shape)
  return model, variables


def fold(
    model: nn.Module, variables: Variables, taps: Sequence[str], image_shape: Sequence[int]
) -> Variables:
  """`variables` with the batch norms folded into the layers whose output they alone read.

  Such a layer, an `nn.Conv` or `nn.Dense`, gets its kernel and bias multiplied by scale /
  sqrt(var + epsilon), and the collection `taps.FOLDED` what is left of the norm, its 'shift'. A
  norm stays as it is where anything else reads the layer's output or its weights, where it comes
  before the layer, where either sees other weights than those in `variables`, as below `nn.scan`,
  `nn.remat` or `nn.jit`, and where the model intercepts its methods.

  Args:
    model: a module in evaluation mode.
    variables: its {'params', 'batch_stats'}.
    taps: all those that will be read.
    image_shape: height, width, channels.
  """
  leaves, structure = jax.tree.flatten(variables)
  calls: dict[str, _Call] = {}

  def says(leaves, image):
    with nn.intercept_methods(_marker(leaves, calls)):
      said, _ = taps_lib.observe(
          model, jax.tree.unflatten(structure, leaves), image, taps)
    return said.logits, said.features, said.preactivations, said.embedding

  traced = jax.make_jaxpr(says)(leaves, jnp.zeros((1, *image_shape)))
  shifts = {}
  for layer, norm in _pairs(traced.jaxpr, calls):
    shifts[*norm.path, 'shift'] = _multiply(leaves, layer, norm)
  if not shifts:
    return variables
  return {**jax.tree.unflatten(structure, leaves),
          taps_lib.FOLDED: flax.traverse_util.unflatten_dict(shifts)}


def _marker(leaves: list[jax.Array], calls: dict[str, _Call]):
  """An interceptor that marks what layers return and norms read, and files their calls."""
  places = {id(leaf): place for place, leaf in enumerate(leaves)}
  roots = []  # The model's own comes first; another is that of an `apply` within it.

  def mark(call: _Call, array: jax.Array) -> jax.Array:
    name = f'kdih.cohort.frozen_teacher {len(calls)}'
    calls[name] = call
    return checkpoint_name(array, name)

  def intercept(next_function, args, kwargs, context):
    module = context.module
    roots.append(getattr(module.scope, 'root', None))
    layer, norm = _is_layer(module), _is_norm(module, args, kwargs)
    # Below this interceptor is that of `taps.observe`, and none of the model's own.
    alone = getattr(next_function, '__wrapped__', None) is context.orig_method
    if not (layer or norm) or not alone or roots[-1] is not roots[0]:
      return next_function(*args, **kwargs)
    weights: Any = {name: places.get(id(leaf)) for kind in ('params', 'batch_stats')
                    for name, leaf in module.variables.get(kind, {}).items()}
    if None in weights.values():
      return next_function(*args, **kwargs)
    call = _Call(module, module.path, weights)
    if norm:
      return next_function(mark(call, args[0]), *args[1:], **kwargs)
    return mark(call, next_function(*args, **kwargs))

  return intercept


def _is_layer(module: nn.Module) -> bool:
  # Fields by which a layer may be made to do other than multiply by its kernel.
  replaced = ('conv_general_dilated', 'conv_general_dilated_cls', 'dot_general', 'dot_general_cls')
  return (type(module) in (nn.Conv, nn.Dense) and _in_float32(module)
          and all(getattr(module, field, None) is None for field in replaced))


def _is_norm(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
  if not (type(module) is nn.BatchNorm and _in_float32(module) and args):
    return False
  told = args[1] if len(args) > 1 else kwargs.get('use_running_average')
  return module.axis in (-1, args[0].ndim - 1) and bool(told or module.use_running_average)


def _in_float32(module: Any) -> bool:
  return module.param_dtype == jnp.float32


def _pairs(jaxpr: core.Jaxpr, calls: dict[str, _Call]) -> list[tuple[_Call, _Call]]:
  """Each layer whose output a norm alone reads, with the norm; both are called once."""
  uses = collections.Counter(
      var for read in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars)
      for var in read if not isinstance(var, core.Literal))
  makers = {var: equation for equation in jaxpr.eqns for var in equation.outvars}

  def source(var) -> _Call | None:
    maker = makers.get(var)
    if maker is None or uses[var] != 1:
      return None
    if maker.primitive.name == 'convert_element_type':
      return source(maker.invars[0])
    return _marked(maker, calls)

  def once(call: _Call, *names: str) -> bool:
    return all(uses[jaxpr.invars[call.weights[name]]] == 1
               for name in names if name in call.weights)

  found = []
  for equation in jaxpr.eqns:
    norm = _marked(equation, calls)
    layer = source(equation.invars[0]) if norm and 'mean' in norm.weights else None
    if layer and norm and 'kernel' in layer.weights and (
        once(layer, 'kernel', 'bias') and once(norm, 'mean')):
      found.append((layer, norm))
  return found


def _marked(equation: core.JaxprEqn, calls: dict[str, _Call]) -> _Call | None:
  return calls.get(equation.params['name']) if equation.primitive.name == 'name' else None


def _multiply(leaves: list[Any], layer: _Call, norm: _Call) -> jax.Array:
  """Multiplies the weights of `layer` by what `norm` does, and returns what it adds."""
  def numbers(name: str, default: float) -> np.ndarray:
    place = norm.weights.get(name)
    return np.asarray(default if place is None else leaves[place], np.float64)

  module: Any = norm.module
  factor = numbers('scale', 1) / np.sqrt(numbers('var', 1) + module.epsilon)
  computed_in = getattr(layer.module, 'dtype', None) or jnp.float32
  for place in layer.weights.values():
    leaves[place] = jnp.asarray(np.asarray(leaves[place], np.float64) * factor, computed_in)
  return jnp.asarray(numbers('bias', 0) - numbers('mean', 0) * factor, jnp.float32)
