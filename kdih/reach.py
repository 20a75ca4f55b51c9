"""Which parameters a loss depends on: the others are neither moved nor decayed."""
from collections.abc import Callable
from typing import Any

import jax
import optax

from kdih import parallel


def reached(loss: Callable[[Any], jax.Array], params: Any) -> Any:
  """A tree like `params` of bools: whether a gradient of `loss` can flow to each leaf.

  Read off the traced program; nothing is computed. What passes `stop_gradient` alone is not
  reached.

  Args:
    loss: params to a scalar; it may speak over the axis of devices.
    params: arrays or shapes.
  """
  traced = jax.make_jaxpr(loss, axis_env=[(parallel.AXIS, parallel.num_devices())])(params)
  needed = {id(traced.jaxpr.outvars[0])}
  for equation in reversed(traced.jaxpr.eqns):
    if equation.primitive.name == 'stop_gradient':
      continue
    if needed & {id(variable) for variable in equation.outvars}:
      needed |= {id(variable) for variable in equation.invars}
  flags = [id(variable) in needed for variable in traced.jaxpr.invars]
  return jax.tree.unflatten(jax.tree.structure(params), flags)


def only(tx: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
  """`tx` for the leaves that `mask` marks; the others keep their values."""
  if all(jax.tree.leaves(mask)):
    return tx
  frozen = jax.tree.map(lambda reached: not reached, mask)
  return optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))
