"""The compiled steps: one update, and one batch of evaluation, over all devices."""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdih.distillation import losses
from kdih.runtime import devices
from kdih.training import groups, state as state_lib
from kdih.training.accumulate import accumulated, make_learn
from kdih.training.state import TrainState
from kdih.training.task import Learning, LiveOutputs, Task, TeacherOutputs

Gather = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]


def make_train_step(
    *, learning: Sequence[Learning], gather: Gather, preprocess: Callable, steps_per_epoch: float,
    accumulate: int = 1, remat: bool = False, together_by: str = 'unrolled',
    resident: dict[str, Any] | None = None, table: TeacherOutputs | None = None,
) -> Callable:
  """Returns `step(states, frozen, resident, feeds)` to (new states, metrics), over all devices.

  There is a state for every student, of which most often there is one: they see the same batches.
  One call makes as many updates as `feeds` holds, see `steps_per_call.stacked`. The global batch's
  mean gradient makes the update. Batch statistics and metrics ({'loss', 'top1'}, [updates], for
  each student) are means over the devices. The buffers of the states are donated.

  Args:
    learning: one for each student. All are taught alike: the first one's task is, with its frozen
      variables, which each call gets as `frozen`.
    gather: of the loader that made `resident` and the feeds.
    preprocess: from `kdih.data.augment.make_preprocess`.
    steps_per_epoch: by which the task is told the epoch.
    accumulate: parts that each device cuts its share of a batch into. What is not a parameter,
      such as batch statistics, goes from part to part as it else goes from batch to batch.
    remat: keep results of convolutions and products alone for the backward pass.
    together_by: how several students learn, one of `choices.TOGETHER_BY`.
    resident: what the loader keeps on the devices, where there is a `table`.
    table: where the step finds what the teachers say; its `resident` joins the loader's.
  """
  each, kinds = groups.group(together_by, learning)
  learn = accumulated(make_learn([kind.task for kind in kinds], each, remat), accumulate)
  apply = each([functools.partial(_apply, kind.tx) for kind in kinds])
  table = table or LiveOutputs()

  def update(states, frozen, resident, feed):
    first = each.first(states)  # Step and order are those of all.
    key = state_lib.step_key(first.order_seed, first.step)
    batch = gather(resident, feed)
    batch = {**batch, 'image': preprocess(batch['image'], batch['index'], key),
             **table.look_up(resident, batch['index'], key)}
    slopes, metrics, collections = learn(
        each([_student] * len(kinds))(states), frozen, batch, first.step / steps_per_epoch, None)
    slopes, metrics = jax.lax.pmean((slopes, metrics), devices.AXIS)
    states, = apply(states, slopes, collections)
    return states, metrics

  def step(states: tuple[TrainState, ...], frozen, resident, feeds):
    def body(joined, feed):
      joined, metrics = update(joined, frozen, resident, feed)
      return joined, each.split(metrics)

    joined, metrics = devices.scan(body, each.join(states), feeds)
    return each.split(joined), metrics

  return devices.pmap_step(step, donate_state=True, resident_axes=table.axes and {
      **dict.fromkeys(resident or {}), **table.axes} or None)


def _student(state: TrainState) -> tuple[Any, Any, jax.Array, jax.Array]:
  """What learns from a batch, as `kdih.training.accumulate.Learn` takes it."""
  key = state_lib.step_key(state.seed, state.step)
  dropout_key = jax.random.fold_in(key, jax.lax.axis_index(devices.AXIS))
  return state.params, state.collections, key, dropout_key


def _apply(
    tx: optax.GradientTransformation, state: TrainState, slopes: Any, collections: Any
) -> tuple[TrainState]:
  """The state after the update that the gradients make."""
  updates, opt_state = tx.update(slopes, state.opt_state, state.params)
  updates = jax.tree.map(lambda update: update * state.pace.astype(update.dtype), updates)
  params = optax.apply_updates(state.params, updates)
  return dataclasses.replace(
      state, step=state.step + 1, params=params, opt_state=opt_state,
      # Every device has the same memory already.
      collections={name: tree if name == 'memory' else devices.mean(tree)
                   for name, tree in collections.items()}),


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
    labels, mask = batch['label'], batch['mask']

    def total(per_example):
      return jnp.where(mask > 0, per_example, 0).astype(jnp.float32).sum()

    sums: dict[str, Any] = {}
    for name, logits in predictions.items():
      _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
      sums[name] = {'loss': total(losses.cross_entropy(logits, labels)),
                    'top1': total(logits.argmax(-1) == labels),
                    'top5': total((best == labels[:, None]).any(-1))}
      if task.reference and name != task.reference:
        same = logits.argmax(-1) == predictions[task.reference].argmax(-1)
        sums[name]['agreement'] = total(same)
    return jax.lax.psum({**sums, 'count': mask.sum()}, devices.AXIS)

  return devices.pmap_step(step)


def make_predict_step(*, task: Task, gather: Gather, preprocess: Callable) -> Callable:
  """Returns `step(variables, frozen, resident, feed)` to the global batch's (logits, labels, mask).

  Logits [global batch, classes] come by the name of the classifier.
  """
  def step(variables, frozen, resident, feed):
    batch = gather(resident, feed)
    images = preprocess(batch['image'], batch['index'], None)
    predictions = task.predict(variables, frozen, images)
    return jax.tree.map(devices.gather, (predictions, batch['label'], batch['mask']))

  return devices.pmap_step(step)
