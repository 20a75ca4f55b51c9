"""The compiled steps over all devices: an update, and the evaluation of a batch."""
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
from kdih.training.accumulate import accumulated, rematerialized
from kdih.training.state import TrainState, step_key
from kdih.training.task import Batch, Moment, Task

Gather = Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]
METRICS = ('loss', 'top1')  # The metrics of every step, beside the terms of its loss.
Metrics = dict[str, jax.Array]  # `METRICS` and the terms of the loss, scalars.
TrainStep = Callable[[Any, Any, Batch, TeacherSignal | None], tuple[Any, Any]]


def make_train_step(
    task: Task, tx: optax.GradientTransformation, *, steps_per_epoch: float, accumulate: int = 1,
    remat: bool = False,
) -> TrainStep:
  """Returns the function `train_step(state, frozen, batch, signal)` to (new state, metrics).

  It makes one update, inside a program over all devices. `batch` is the device's part of the global
  batch. The update is that of the global batch's mean gradient; batch statistics and metrics are
  means over the devices.

  Args:
    task: the learning problem.
    tx: the optimizer.
    steps_per_epoch: number of steps of an epoch, to compute the epoch from the step.
    accumulate: number of parts into which each device cuts its part of the batch, see
      `accumulated`. With several, a signal of None is computed part by part.
    remat: store fewer activations for the backward pass, see `rematerialized`.
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

    value_and_grad = jax.value_and_grad(rematerialized(loss_fn) if remat else loss_fn, has_aux=True)
    if accumulate > 1:
      value_and_grad = accumulated(
          value_and_grad, accumulate, functools.partial(task.signals.compute, frozen))
    (_, (metrics, collections)), gradients = value_and_grad(
        state.params, state.collections, batch, signal, moment)
    gradients, metrics = jax.lax.pmean((gradients, metrics), devices.AXIS)
    return state.apply_gradients(tx, gradients, _averaged(collections)), metrics

  return train_step


def _top1(logits: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
  """Returns the accuracy, a mean over the trained classifiers and the examples."""
  return jnp.stack([(z.argmax(-1) == labels).astype(jnp.float32).mean()
                    for z in logits.values()]).mean()


def _averaged(collections: dict[str, Any]) -> dict[str, Any]:
  """Returns the means of the collections over the devices; `memory` is equal on all of them."""
  return {name: tree if name == 'memory' else devices.mean(tree)
          for name, tree in collections.items()}


def compile_train_step(
    train_step: TrainStep, task: Task, loader: Loader,
    reference: Callable[[Any], TrainState] = lambda state: state,
) -> Callable:
  """Returns `step(state, frozen, resident, feeds)` to (new state, metrics), over all devices.

  One call makes as many updates as `feeds` holds, see `steps_per_call.stacked`; each metric is
  [updates]. The buffers of the state are donated.

  Args:
    train_step: makes one update of `state`.
    task: the learning problem, which reads the batch and the teacher signal.
    loader: the loader of the feeds. `resident` holds its resident arrays and those of the task's
      signals.
    reference: function from `state` to the `TrainState` whose step and order seed give the key of
      the augmentation.
  """
  def update(frozen, resident, state, feed):
    arrays = loader.gather(resident, feed)
    key = step_key(reference(state).order_seed, reference(state).step)
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

  The sums are {name: {'loss', 'top1', 'top5', 'agreement'}} for every classifier of the task's
  predictions, and 'count', the number of examples. Masked examples add nothing. `agreement` counts
  the examples on which a classifier predicts the same class as the task's reference; it is left
  out if the task has no reference.

  Args:
    task: makes the predictions.
    gather: the loader's function from (resident arrays, feed) to the arrays of the batch.
    preprocess: normalises the images.
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

  The logits are {name of the classifier: [global batch, classes]}.

  Args:
    task: makes the predictions.
    gather: the loader's function from (resident arrays, feed) to the arrays of the batch.
    preprocess: normalises the images.
  """
  def step(variables, frozen, resident, feed):
    batch = gather(resident, feed)
    images = preprocess(batch['image'], batch['index'], None)
    predictions = task.predict(variables, frozen, images)
    return jax.tree.map(devices.gather, (predictions, batch['label'], batch['mask']))

  return devices.pmap_step(step)
