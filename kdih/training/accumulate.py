"""Gradients of a task on a device's share of a batch: at once, or part by part to save memory."""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdih.runtime import devices
from kdih.training.groups import Each
from kdih.training.task import Batch, Task

# (students, frozen, batch, epoch, part) to (gradients, metrics, new collections), all but the
# middle of each student. A student is (params, collections, key, key of dropout); the batch is what
# each example has: 'image', 'label', 'index'; parts of a batch are numbered, a whole one is None.
Learn = Callable[[Any, Any, Batch, jax.Array, jax.Array | None], tuple[Any, Any, Any]]


def make_learn(tasks: Sequence[Task], each: Each, remat: bool) -> Learn:
  """Mean gradients and metrics ({'loss', 'top1'}, scalars) of the examples that are given.

  They are taught once, by the first task, whatever the number of students.

  Args:
    tasks: one for every group of students.
    each: how several students learn.
    remat: make the losses `frugal`.
  """
  def learn(students, frozen, batch, epoch, part):
    batch = {**batch, 'epoch': epoch}
    taught = tasks[0].teach(frozen, batch)

    def alone(task, params, collections, key, dropout_key):
      told = {**batch, 'key': key, 'taught': taught}
      if part is not None:
        dropout_key = jax.random.fold_in(dropout_key, part)

      def loss(params):
        return task.loss(params, collections, frozen, told, dropout_key)

      (value, (changed, logits)), slopes = jax.value_and_grad(
          frugal(loss) if remat else loss, has_aux=True)(params)
      top1 = jnp.stack([(z.argmax(-1) == batch['label']).astype(jnp.float32).mean()
                        for z in logits.values()]).mean()
      return slopes, {'loss': value, 'top1': top1}, changed

    return each([functools.partial(alone, task) for task in tasks])(*students)

  return learn


def accumulated(learn: Learn, parts: int) -> Learn:
  """As `learn`, which then sees one of so many equal parts of the batch after the other.

  Gradients and metrics are means over the parts, and so those of the whole batch where no example
  has to do with another. Collections go from part to part.
  """
  if parts == 1:
    return learn

  def learn_in_parts(students, frozen, batch, epoch, part):
    del part
    params, first, *keys = students

    def add(carry, numbered):
      (total, collections), (number, cut) = carry, numbered
      slopes, metrics, collections = learn(
          (params, collections, *keys), frozen, cut, epoch, number)
      return (jax.tree.map(jnp.add, total, slopes), collections), metrics

    cuts = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in batch.items()}
    (total, collections), metrics = devices.scan(
        add, (jax.tree.map(jnp.zeros_like, params), first), (jnp.arange(parts), cuts))
    return (jax.tree.map(lambda x: x / parts, total),
            jax.tree.map(lambda values: values.mean(0), metrics), collections)

  return learn_in_parts


def frugal(function: Callable) -> Callable:
  """The function, of which the backward pass is left results of convolutions and products alone.

  It computes the others again, such as those of batch norms, which are the cheaper and the larger
  part.
  """
  def is_product(primitive, *_, **__):
    return primitive.name in ('conv_general_dilated', 'dot_general')

  return jax.checkpoint(function, policy=is_product)
