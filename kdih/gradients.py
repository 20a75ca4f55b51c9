"""Gradients of a task on a device's share of a batch: at once, or part by part to save memory."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdih import parallel
from kdih.tasks import Batch, Task

# (params, collections, frozen, batch, told, key) to (gradients, metrics, new collections). The
# batch is what each example has: 'image', 'label', 'index'; `told` goes with all of them: 'epoch',
# 'key'. `key` is that of dropout.
Learn = Callable[[Any, Any, Any, Batch, Batch, jax.Array], tuple[Any, dict[str, jax.Array], Any]]


def make_learn(task: Task, remat: bool) -> Learn:
  """Mean gradients and metrics ({'loss', 'top1'}, scalars) of the examples that are given.

  Args:
    task: the loss.
    remat: make the loss `frugal`.
  """
  def learn(params, collections, frozen, batch, told, key):
    batch = {**batch, **told}
    batch['taught'] = task.teach(frozen, batch)

    def loss(params):
      return task.loss(params, collections, frozen, batch, key)

    (value, (collections, logits)), slopes = jax.value_and_grad(
        frugal(loss) if remat else loss, has_aux=True)(params)
    return slopes, {'loss': value, 'top1': _mean_top1(logits, batch['label'])}, collections

  return learn


def accumulated(learn: Learn, parts: int) -> Learn:
  """As `learn`, which then sees one of so many equal parts of the batch after the other.

  Gradients and metrics are means over the parts, and so those of the whole batch where no example
  has to do with another. Collections go from part to part.
  """
  if parts == 1:
    return learn

  def learn_in_parts(params, collections, frozen, batch, told, key):
    def add(carry, numbered):
      (total, collections), (number, part) = carry, numbered
      slopes, metrics, collections = learn(
          params, collections, frozen, part, told, jax.random.fold_in(key, number))
      return (jax.tree.map(jnp.add, total, slopes), collections), metrics

    cut = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in batch.items()}
    (total, collections), metrics = parallel.scan(
        add, (jax.tree.map(jnp.zeros_like, params), collections), (jnp.arange(parts), cut))
    return (jax.tree.map(lambda x: x / parts, total),
            {name: values.mean() for name, values in metrics.items()}, collections)

  return learn_in_parts


def frugal(function: Callable) -> Callable:
  """The function, of which the backward pass is left results of convolutions and products alone.

  It computes the others again, such as those of batch norms, which are the cheaper and the larger
  part.
  """
  return jax.checkpoint(function, policy=_is_product)


def _is_product(primitive: Any, *_, **__) -> bool:
  """Whether a result is dear to compute again."""
  return primitive.name in ('conv_general_dilated', 'dot_general')


def _mean_top1(logits: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
  return jnp.stack([(z.argmax(-1) == labels).astype(jnp.float32).mean()
                    for z in logits.values()]).mean()
