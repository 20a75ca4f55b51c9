"""What each phase learns: a loss for training, predictions for evaluation, what stays frozen."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import cohort, losses, state, taps as taps_lib
from kdih.methods import Method

Batch = dict[str, jax.Array]
Logits = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
  """One phase's learning problem.

  Attributes:
    loss: (params, batch_stats, frozen, batch, key) to (mean loss of the batch, (new batch_stats,
      logits of what is learnt)). Differentiated with respect to `params` alone.
    predict: (variables, frozen, images) to logits by name, in evaluation mode.
    frozen: variables that the two read and nothing changes.
    reference: the prediction that the others' agreement is measured with; '' for none.
  """

  loss: Callable[[Any, Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, Logits]]]
  predict: Callable[[Any, Any, jax.Array], Logits]
  frozen: Any
  reference: str = ''


def _train_forward(model: nn.Module, params, batch_stats, images, key):
  logits, updates = model.apply(
      state.pack(params, batch_stats), images, train=True, mutable=['batch_stats'],
      rngs={'dropout': key})
  return logits.astype(jnp.float32), updates.get('batch_stats', {})


def _predict(name: str, model: nn.Module):
  def predict(variables, frozen, images):
    del frozen
    logits: Any = model.apply(variables, images, train=False)
    return {name: logits.astype(jnp.float32)}
  return predict


def teacher_task(model: nn.Module) -> Task:
  """The teacher learns from the labels."""
  def loss(params, batch_stats, frozen, batch, key):
    del frozen
    logits, batch_stats = _train_forward(model, params, batch_stats, batch['image'], key)
    return losses.cross_entropy(logits, batch['label']).mean(), (batch_stats, {'teacher': logits})

  return Task(loss, _predict('teacher', model), {})


def heads_task(
    teacher: nn.Module, heads: nn.Module, teacher_variables: Any, taps: Sequence[str]
) -> Task:
  """All heads learn at once from the labels; the backbone is frozen (DIH, section 3).

  The loss is the sum of the heads' cross-entropies. `predict` gives the whole cohort.
  """
  def loss(params, batch_stats, frozen, batch, key):
    del key
    _, features = taps_lib.apply_with_taps(teacher, frozen['teacher'], batch['image'], taps)
    logits: Any = heads.apply({'params': params}, jax.lax.stop_gradient(features))
    per_head = [losses.cross_entropy(z, batch['label']).mean() for z in logits.values()]
    return jnp.stack(per_head).sum(), (batch_stats, logits)

  def predict(variables, frozen, images):
    members = cohort.cohort_logits(
        teacher, heads, {**frozen, 'heads': variables}, images, taps)
    return {**members, cohort.MEAN: cohort.mean_logits(members)}

  return Task(loss, predict, {'teacher': teacher_variables}, reference=cohort.FINAL)


def student_task(
    student: nn.Module,
    method: Method,
    teach: Callable[[Any, jax.Array], Logits],
    frozen: Any,
) -> Task:
  """The student learns by `method` from what `teach(frozen, images)` says."""
  def loss(params, batch_stats, frozen, batch, key):
    members = teach(frozen, batch['image'])
    logits, batch_stats = _train_forward(student, params, batch_stats, batch['image'], key)
    return method.loss(logits, members, batch['label']).mean(), (batch_stats, {'student': logits})

  return Task(loss, _predict('student', student), frozen)


def make_teach(
    taught_by: str, teacher: nn.Module, heads: nn.Module, taps: Sequence[str]
) -> Callable[[Any, jax.Array], Logits]:
  """What a method hears: (frozen, images) to the logits of the members it is `taught_by`."""
  if taught_by == 'labels':
    return lambda *_: {}
  members = tuple(taps) if taught_by == 'cohort' else ()
  return lambda frozen, images: cohort.cohort_logits(teacher, heads, frozen, images, members)


def with_teacher(task: Task, teacher: nn.Module, teacher_variables: Any) -> Task:
  """`task` with a `predict` that adds the teacher's logits, to measure agreement."""
  def predict(variables, frozen, images):
    logits = task.predict(variables, frozen['task'], images)
    return {**logits, **_predict('teacher', teacher)(frozen['teacher'], None, images)}

  return Task(task.loss, predict, {'task': task.frozen, 'teacher': teacher_variables},
              reference='teacher')
