"""Durations, schedules and optimizers of a phase, and which parameters they move."""
import collections
import dataclasses
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
    """The whole number of steps nearest to `length` units."""
    return round(length * (self.steps_per_epoch if self.unit == 'epochs' else 1))


def make_schedule(train: 'ml_collections.ConfigDict', duration: Duration) -> optax.Schedule:
  """Learning rate by step, after a linear warm-up; milestones count from the first step."""
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
  """SGD as PyTorch's (weight decay added to the gradient, before momentum), or AdamW."""
  if train.optimizer == 'adamw':
    return optax.adamw(schedule, weight_decay=train.weight_decay)
  return optax.chain(
      optax.add_decayed_weights(train.weight_decay),
      optax.sgd(schedule, momentum=train.momentum, nesterov=train.nesterov))


def gradient_mask(loss: Callable[[Any], jax.Array], params: Any) -> Any:
  """A tree like `params` of bools: whether a gradient of `loss` can flow to each leaf.

  Read off the traced program; nothing is computed. What passes `stop_gradient` alone is not
  reached.

  Args:
    loss: params to a scalar; it may speak over the axis of devices.
    params: arrays or shapes.
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
  """`tx` for the leaves that `mask` marks; the others keep their values."""
  if all(jax.tree.leaves(mask)):
    return tx
  frozen = jax.tree.map(lambda reached: not reached, mask)
  return optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))
