"""Gradients of a device's share of a batch, part by part or of fewer activations: saves memory."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdih.runtime import devices


def accumulated(value_and_grad: Callable, parts: int, ask: Callable) -> Callable:
  """Returns `value_and_grad` of so many equal parts of the batch, one after the other.

  Metrics and gradients are means over the parts, and so those of the whole batch where no example
  has to do with another. Collections go from part to part, as they else go from batch to batch.

  Args:
    value_and_grad: (params, collections, batch, signal, moment) to ((loss, (metrics, new
      collections)), gradients).
    parts: how many.
    ask: from the images of a part to its signal, which is used where the batch has none.
  """
  def in_parts(params, collections, batch, signal, moment):
    def add(carry, part):
      total, collections = carry
      number, batch, signal = part
      if signal is None:
        signal = ask(batch.images)
      own = moment.replace(dropout_key=jax.random.fold_in(moment.dropout_key, number))
      (loss, (metrics, collections)), gradients = value_and_grad(
          params, collections, batch, signal, own)
      return (jax.tree.map(jnp.add, total, gradients), collections), (loss, metrics)

    cut = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), (batch, signal))
    (total, collections), scalars = devices.scan(
        add, (jax.tree.map(jnp.zeros_like, params), collections), (jnp.arange(parts), *cut))
    loss, metrics = jax.tree.map(lambda values: values.mean(0), scalars)
    return (loss, (metrics, collections)), jax.tree.map(lambda x: x / parts, total)

  return in_parts


def frugal(function: Callable) -> Callable:
  """Returns the function, of which the backward pass is left results of convolutions and products.

  It computes the others again, such as those of batch norms, which are the cheaper and the larger
  part.
  """
  def is_product(primitive, *_, **__):
    return primitive.name in ('conv_general_dilated', 'dot_general')

  return jax.checkpoint(function, policy=is_product)
