"""Gradients of a device's part of the batch with less memory: in parts, or with recomputation."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdih.runtime import devices


def accumulated(value_and_grad: Callable, parts: int, compute_signal: Callable) -> Callable:
  """Returns a function that applies `value_and_grad` to equal parts of the batch, one by one.

  Metrics and gradients are means over the parts. They equal those of the whole batch if no image's
  loss depends on another image. Collections, such as batch statistics, are passed from part to
  part as they otherwise are from batch to batch.

  Args:
    value_and_grad: (params, collections, batch, signal, moment) to ((loss, (metrics, new
      collections)), gradients).
    parts: number of parts.
    compute_signal: function from the images of a part to their teacher signal; used if the signal
      of the batch is None.
  """
  def in_parts(params, collections, batch, signal, moment):
    def add(carry, part):
      total, collections = carry
      number, batch, signal = part
      if signal is None:
        signal = compute_signal(batch.images)
      own = moment.replace(dropout_key=jax.random.fold_in(moment.dropout_key, number))
      (loss, (metrics, collections)), gradients = value_and_grad(
          params, collections, batch, signal, own)
      return (optax.tree.add(total, gradients), collections), (loss, metrics)

    cut = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), (batch, signal))
    (total, collections), scalars = devices.scan(
        add, (optax.tree.zeros_like(params), collections), (jnp.arange(parts), *cut))
    loss, metrics = jax.tree.map(lambda values: values.mean(0), scalars)
    return (loss, (metrics, collections)), optax.tree.scale(1 / parts, total)

  return in_parts


def rematerialized(function: Callable) -> Callable:
  """Returns the function with a backward pass that stores less and recomputes more.

  Only the results of convolutions and matrix products are stored. All others, such as those of
  batch norms, are recomputed: they are cheap to compute and take most of the memory.
  """
  def is_product(primitive, *_, **__):
    return primitive.name in ('conv_general_dilated', 'dot_general')

  return jax.checkpoint(function, policy=is_product)
