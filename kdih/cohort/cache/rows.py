"""A teacher signal as a row of numbers for each image, which is how a cache stores it, and back."""
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kdih.distillation.signal import TeacherSignal


def flatten(signal: TeacherSignal) -> jax.Array:
  """Returns the arrays of a signal as one, [batch, width]: an image's lie one behind the other."""
  return jax.vmap(lambda one: ravel_pytree(one)[0])(signal)


def width(like: TeacherSignal) -> int:
  """Returns how many numbers a row of such a signal has; it may consist of shapes."""
  return jax.eval_shape(flatten, like).shape[-1]


def unflatten(rows: jax.Array, like: TeacherSignal) -> TeacherSignal:
  """Returns the signal, float32, of rows [batch, width].

  Args:
    rows: of any type.
    like: a signal of the same structure and shapes but for the batch; it may consist of shapes.
  """
  one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), like)
  return jax.vmap(ravel_pytree(one)[1])(rows.astype(jnp.float32))
