"""The compiled steps: one update, and one batch of evaluation, over all devices."""
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdih.data.loaders import Loader
from kdih.distillation import losses
from kdih.distillation.signal import TeacherSignal
from kdih.runtime import devices
from kdih.training.accumulate import accumulated, frugal
from kdih.training.state import TrainState, step_key
from kdih.training.task import Batch, Moment, Task

Gather = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
METRICS = ('loss', 'top1')  # Of every step, beside the terms of its loss.
Metrics = dict[str, jax.Array]  # `METRICS` and the terms by name: scalars.
TrainStep = Callable[[Any, Any, Batch, TeacherSignal | None], tuple[Any, Any]]


def make_train_step(
    task: Task, tx: optax.GradientTransformation, *, steps_per_epoch: float, accumulate: int = 1,
    remat: bool = False,
) -> TrainStep:
  """Returns `train_step(state, frozen, batch, signal)` to (new state, metrics): one update.

  Each device has its share of the batch. The global batch's mean gradient makes the update; batch
  statistics and metrics are means over the devices.

  Args:
    task: what is learnt.
    tx: the optimizer.
    steps_per_epoch: by which the task is told the epoch.
    accumulate: parts that each device cuts its share of a batch into, see `accumulated`. Of
      several, the teachers are asked for the signal of each where there is none of the batch.
    remat: keep results of convolutions and products alone for the backward pass.
  """
  def train_step(
      state: TrainState, frozen: Any, batch: Batch, signal: TeacherSignal | None
  ) -> tuple[TrainState, Metrics]:
    key = step_key(state.seed, state.step)
    dropout_key = jax.random.fold_in(key, jax.lax.axis_index(devices.AXIS))
    moment = Moment(state.step / steps_per_epoch, key, dropout_key)

    def loss_fn(params, collections, batch, signal, moment):
      terms, (collections, logits) = task.loss(
          params, collections, frozen, batch, signal, moment)
      terms = {name: term.mean() for name, term in terms.items()}
      loss = sum(terms.values(), jnp.zeros(()))
      return loss, ({'loss': loss, **terms, 'top1': _top1(logits, batch.labels)}, collections)

    value_and_grad = jax.value_and_grad(frugal(loss_fn) if remat else loss_fn, has_aux=True)
    if accumulate > 1:
      value_and_grad = accumulated(
          value_and_grad, accumulate, functools.partial(task.signals.ask, frozen))
    (_, (metrics, collections)), gradients = value_and_grad(
        state.params, state.collections, batch, signal, moment)
    gradients, metrics = jax.lax.pmean((gradients, metrics), devices.AXIS)
    return state.apply_gradients(tx, gradients, _averaged(collections)), metrics

  return train_step


def _top1(logits: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
  """Returns the accuracy of what is learnt, a mean over classifiers and examples."""
  return jnp.stack([(z.argmax(-1) == labels).astype(jnp.float32).mean()
                    for z in logits.values()]).mean()


def _averaged(collections: dict[str, Any]) -> dict[str, Any]:
  """Returns what each device has seen of the batch as its mean; memory is the same on all."""
  return {name: tree if name == 'memory' else devices.mean(tree)
          for name, tree in collections.items()}


def compile_train_step(
    train_step: TrainStep, task: Task, loader: Loader,
    shown: Callable[[Any], TrainState] = lambda state: state,
) -> Callable:
  """Returns `step(state, frozen, resident, feeds)` to (new state, metrics), over all devices.

  One call makes as many updates as `feeds` holds, see `steps_per_call.stacked`; each metric is
  [updates]. The buffers of the state are donated.

  Args:
    train_step: one update, of what `state` is.
    task: reads the batch and the teacher signal; its frozen variables go with each call.
    loader: made the feeds; `resident` joins its resident arrays and those of the task's signals.
    shown: from the state to the one whose step and order seed draw the augmentation.
  """
  def update(frozen, resident, state, feed):
    arrays = loader.gather(resident, feed)
    key = step_key(shown(state).order_seed, shown(state).step)
    batch = Batch(task.preprocess(arrays['image'], arrays['index'], key), arrays['label'],
                  arrays['index'])
    signal = task.signals.read(frozen, {**resident, **feed}, batch, key)
    return train_step(state, frozen, batch, signal)

  def step(state, frozen, resident, feeds):
    return devices.scan(functools.partial(update, frozen, resident), state, feeds)

  axes = task.signals.axes and {**dict.fromkeys(loader.resident), **task.signals.axes}
  return devices.pmap_step(step, donate_state=True, resident_axes=axes or None)


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
