"""Durations, learning-rate schedules and optimizers, and masks of the trained parameters."""
import collections
import dataclasses
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import optax

from kdih.runtime import devices

if TYPE_CHECKING:
  import ml_collections


@dataclasses.dataclass(frozen=True)
class Duration:
  """Converts a phase's durations into steps.

  Attributes:
    unit: 'epochs' or 'steps'.
    steps_per_epoch: training examples over the global batch size, a fraction.
  """

  unit: str
  steps_per_epoch: float

  def steps(self, length: float) -> int:
    """Returns the number of steps that is nearest to `length` epochs or steps."""
    return round(length * (self.steps_per_epoch if self.unit == 'epochs' else 1))


def make_schedule(train: 'ml_collections.ConfigDict', duration: Duration) -> optax.Schedule:
  """Returns the learning rate by step: constant, piecewise constant or cosine, after a warm-up.

  The warm-up is linear, from 0. Milestones count from the first step; the cosine begins after the
  warm-up and ends at 0.

  Args:
    train: a training's part of the config, such as `config.student.train`.
    duration: converts its durations into steps.
  """
  total, warmup = duration.steps(train.length), duration.steps(train.warmup)
  if train.schedule == 'piecewise':
    milestones = collections.Counter(duration.steps(m) for m in train.milestones)
    boundaries = {step: train.decay**times for step, times in milestones.items()}
    schedule = optax.piecewise_constant_schedule(train.learning_rate, boundaries)
  elif train.schedule == 'cosine':
    schedule = optax.cosine_decay_schedule(train.learning_rate, max(total - warmup, 1))
    schedule = optax.join_schedules([optax.constant_schedule(train.learning_rate), schedule],
                                    [warmup])
  else:
    schedule = optax.constant_schedule(train.learning_rate)
  if not warmup:
    return schedule
  rise = optax.linear_schedule(0.0, 1.0, warmup)
  return lambda step: schedule(step) * rise(step)


def make_optimizer(
    train: 'ml_collections.ConfigDict', schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns SGD, with weight decay added to the gradient before the momentum, or AdamW.

  SGD is PyTorch's. The weight decay applies to every parameter, including biases and batch norms.

  Args:
    train: a training's part of the config, such as `config.student.train`.
    schedule: learning rate by step.
  """
  if train.optimizer == 'adamw':
    return optax.adamw(schedule, weight_decay=train.weight_decay)
  return optax.chain(
      optax.add_decayed_weights(train.weight_decay),
      optax.sgd(schedule, momentum=train.momentum, nesterov=train.nesterov))


def gradient_mask(loss: Callable[[Any], jax.Array], params: Any) -> Any:
  """Returns a tree of bools like `params`: whether a gradient of `loss` can flow to each leaf.

  The loss is traced, not computed. No gradient flows through `stop_gradient`.

  Args:
    loss: function from `params` to a scalar; it may use collectives over the axis of devices.
    params: a tree of arrays or shapes.
  """
  traced = jax.make_jaxpr(loss, axis_env=[(devices.AXIS, devices.num_devices())])(params)
  needed = {id(traced.jaxpr.outvars[0])}
  for equation in reversed(traced.jaxpr.eqns):
    if equation.primitive.name == 'stop_gradient':
      continue
    if needed & {id(variable) for variable in equation.outvars}:
      needed |= {id(variable) for variable in equation.invars}
  flags = [id(variable) in needed for variable in traced.jaxpr.invars]
  return jax.tree.unflatten(jax.tree.structure(params), flags)


def only(tx: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
  """Returns `tx` for the leaves that `mask` marks; all other leaves keep their values."""
  if all(jax.tree.leaves(mask)):
    return tx
  return optax.chain(tx, optax.transforms.freeze(jax.tree.map(operator.not_, mask)))
