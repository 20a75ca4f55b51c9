"""The compiled steps: one update, and one batch of evaluation, over all devices."""
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdih import losses, parallel, state as state_lib
from kdih.heard import NoTable
from kdih.state import TrainState
from kdih.tasks import Task

Gather = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


def make_train_step(
    *, task: Task, tx: optax.GradientTransformation, gather: Gather, preprocess: Callable,
    steps_per_epoch: float, resident: dict[str, Any] | None = None, table: NoTable | None = None,
) -> Callable:
  """Returns `step(state, frozen, resident, feed)` to (new state, metrics), over all devices.

  The global batch's mean gradient makes the update. Batch statistics and metrics ({'loss',
  'top1'}, scalars) are means over the devices. The buffers of `state` are donated.

  Args:
    task: the loss, whose frozen variables each call gets as `frozen`.
    tx: the optimizer, for the state's params.
    gather: of the loader that made `resident` and `feed`.
    preprocess: from `kdih.data.make_preprocess`.
    steps_per_epoch: by which the task is told the epoch.
    resident: what the loader keeps on the devices, where there is a `table`.
    table: where the step finds what the teachers say; its `resident` joins the loader's.
  """
  table = table or NoTable()

  def step(state: TrainState, frozen, resident, feed):
    key = state_lib.step_key(state.seed, state.step)
    batch = gather(resident, feed)
    batch = {**batch, 'image': preprocess(batch['image'], batch['index'], key),
             'epoch': state.step / steps_per_epoch, 'key': key,
             **table.look_up(resident, batch['index'], key)}
    dropout_key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
    (loss, (collections, logits)), gradients = jax.value_and_grad(task.loss, has_aux=True)(
        state.params, state.collections, frozen, batch, dropout_key)
    metrics = {'loss': loss, 'top1': _mean_top1(logits, batch['label'])}
    gradients, metrics = jax.lax.pmean((gradients, metrics), parallel.AXIS)
    collections = _reduce(collections)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: update * state.pace.astype(update.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, step=state.step + 1, params=params, collections=collections,
                               opt_state=opt_state), metrics

  return parallel.pmap_step(step, donate_state=True, resident_axes=table.axes and {
      **dict.fromkeys(resident or {}), **table.axes} or None)


def make_eval_step(*, task: Task, gather: Gather, preprocess: Callable) -> Callable:
  """Returns `step(variables, frozen, resident, feed)` to sums over the global batch.

  {name: {'loss', 'top1', 'top5', 'agreement'}} for every classifier that the task predicts, and
  {'count'}; masked examples count nothing. `agreement` counts the examples on which a classifier
  and the task's reference have the same first choice; without a reference it is left out.
  """
  def step(variables, frozen, resident, feed):
    batch = gather(resident, feed)
    images = preprocess(batch['image'], batch['index'], None)
    predictions = task.predict(variables, frozen, images)
    sums = {name: _sums(logits, batch) for name, logits in predictions.items()}
    for name in predictions.keys() - {task.reference} if task.reference else ():
      same = predictions[name].argmax(-1) == predictions[task.reference].argmax(-1)
      sums[name]['agreement'] = _masked_sum(same, batch['mask'])
    return jax.lax.psum({**sums, 'count': batch['mask'].sum()}, parallel.AXIS)

  return parallel.pmap_step(step)


def make_predict_step(*, task: Task, gather: Gather, preprocess: Callable) -> Callable:
  """Returns `step(variables, frozen, resident, feed)` to the global batch's (logits, labels, mask).

  Logits [global batch, classes] come by the name of the classifier.
  """
  def step(variables, frozen, resident, feed):
    batch = gather(resident, feed)
    images = preprocess(batch['image'], batch['index'], None)
    predictions = task.predict(variables, frozen, images)
    return jax.tree.map(parallel.gather, (predictions, batch['label'], batch['mask']))

  return parallel.pmap_step(step)


def _reduce(collections: dict[str, Any]) -> dict[str, Any]:
  """Batch statistics become their mean; every device has the same memory already."""
  return {name: jax.lax.pmean(tree, parallel.AXIS) if name == 'batch_stats' else tree
          for name, tree in collections.items()}


def _mean_top1(logits: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
  return jnp.stack([(z.argmax(-1) == labels).astype(jnp.float32).mean()
                    for z in logits.values()]).mean()


def _sums(logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  labels = batch['label']
  _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
  per_example = {'loss': losses.cross_entropy(logits, labels),
                 'top1': logits.argmax(-1) == labels,
                 'top5': (best == labels[:, None]).any(-1)}
  return {name: _masked_sum(value, batch['mask']) for name, value in per_example.items()}


def _masked_sum(per_example: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.where(mask > 0, per_example, 0).astype(jnp.float32).sum()
