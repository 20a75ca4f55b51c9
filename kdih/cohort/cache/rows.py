"""Conversion of a teacher signal to a row of numbers for each image, and back."""
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kdih.distillation.signal import TeacherSignal


def flatten(signal: TeacherSignal) -> jax.Array:
  """Concatenates the arrays of a signal to one, [batch, width]."""
  return jax.vmap(lambda one: ravel_pytree(one)[0])(signal)


def width(like: TeacherSignal) -> int:
  """Returns the length of a row of a signal like `like`, which may consist of shapes."""
  return jax.eval_shape(flatten, like).shape[-1]


def unflatten(rows: jax.Array, like: TeacherSignal) -> TeacherSignal:
  """Converts rows [batch, width] of any type back to a signal, float32.

  Args:
    rows: from `flatten`.
    like: a signal with the same structure and, apart from the batch size, the same shapes; it may
      consist of shapes.
  """
  one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), like)
  return jax.vmap(ravel_pytree(one)[1])(rows.astype(jnp.float32))
