"""What each phase learns: a loss for training, predictions for evaluation, what stays frozen."""
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import cohort, losses, parallel, state, taps as taps_lib
from kdih.heard import NoTable
from kdih.taps import Output, Shapes
from kdih.teaching import Lesson, Method

Batch = dict[str, Any]  # Arrays, and what was taught.
Logits = dict[str, jax.Array]
Collections = dict[str, Any]
# (frozen, images) to what the teacher says, if it is asked, and the logits of the members.
Teach = Callable[[Any, jax.Array], tuple[Output | None, Logits]]


@dataclasses.dataclass(frozen=True)
class Task:
  """One phase's learning problem.

  Attributes:
    loss: (params, collections, frozen, batch, key) to (mean loss of the batch, (new collections,
      logits of what is learnt)). Differentiated with respect to `params` alone. The key, of
      dropout, is another one on every device; `batch['key']` is the same.
    predict: (variables, frozen, images) to logits by name, in evaluation mode.
    frozen: variables that the two read and nothing changes.
    reference: the prediction that the others' agreement is measured with; '' for none.
    partial: whether the loss may leave some of the parameters out.
    teach: (frozen, batch) to what no parameter has a part in; the loss finds it as
      `batch['taught']`.
    table: where a step finds what the teachers say; what it finds is `batch['heard']`.
  """

  loss: Callable[[Any, Collections, Any, Batch, jax.Array],
                 tuple[jax.Array, tuple[Collections, Logits]]]
  predict: Callable[[Any, Any, jax.Array], Logits]
  frozen: Any
  reference: str = ''
  partial: bool = False
  teach: Callable[[Any, Batch], Any] = lambda frozen, batch: None
  table: NoTable = NoTable()


def _predict(name: str, model: nn.Module):
  def predict(variables, frozen, images):
    del frozen
    return {name: taps_lib.observe(model, variables, images, ())[0].logits}
  return predict


def teacher_task(model: nn.Module) -> Task:
  """The teacher learns from the labels."""
  def loss(params, collections, frozen, batch, key):
    del frozen
    output, collections = taps_lib.observe(
        model, {'params': params, **collections}, batch['image'], (), train=True, key=key)
    loss = losses.cross_entropy(output.logits, batch['label']).mean()
    return loss, (collections, {'teacher': output.logits})

  return Task(loss, _predict('teacher', model), {})


def heads_task(
    teacher: nn.Module, heads: nn.Module, teacher_variables: Any, taps: Sequence[str],
    prepared: tuple[nn.Module, Any] | None = None, cached: tuple[NoTable, Shapes] | None = None,
) -> Task:
  """All heads learn at once from the labels; the backbone is frozen (DIH, section 3).

  The loss is the sum of the heads' cross-entropies. `predict` gives the whole cohort.

  Args:
    teacher: the backbone.
    heads: the module of all heads.
    teacher_variables: those of the backbone.
    taps: the taps that carry a head.
    prepared: the backbone and its variables as the loss applies them, from `frozen.prepare`.
    cached: where a step finds the features, one behind the other, and the shapes of these; in the
      place of the backbone.
  """
  backbone, variables = prepared or (teacher, teacher_variables)
  table, shapes = cached or (NoTable(), {})

  def loss(params, collections, frozen, batch, key):
    del key
    if 'heard' in batch:
      features = _cut(batch['heard'], shapes)
    else:
      features = taps_lib.observe(backbone, frozen['backbone'], batch['image'], taps)[0].features
    logits: Any = heads.apply({'params': params}, jax.lax.stop_gradient(features))
    per_head = [losses.cross_entropy(z, batch['label']).mean() for z in logits.values()]
    return jnp.stack(per_head).sum(), (collections, logits)

  def predict(variables, frozen, images):
    members = cohort.cohort_logits(
        teacher, heads, {**frozen, 'heads': variables}, images, taps)
    return {**members, cohort.MEAN: cohort.mean_logits(members)}

  return Task(loss, predict, {'teacher': teacher_variables, 'backbone': variables},
              reference=cohort.FINAL, table=table)


def _cut(rows: jax.Array, shapes: Shapes) -> taps_lib.Features:
  """[batch, numbers] to the float32 features of such shapes that lie one behind the other."""
  ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
  parts = jnp.split(rows.astype(jnp.float32), ends[:-1], axis=-1)
  return {tap: part.reshape(-1, *shape)
          for (tap, shape), part in zip(shapes.items(), parts, strict=True)}


def student_task(
    student: nn.Module, taps: Sequence[str], method: Method, teach: Teach, frozen: Any,
    *, preparing: bool = False, table: NoTable | None = None,
) -> Task:
  """The student learns by `method` from what `teach(frozen, images)` says.

  Variables are those of student and method, joined: {'params': {'student', 'method'}, ...}.

  Args:
    student: its module.
    taps: those of its taps that the method reads.
    method: how it is taught.
    teach: from `make_teach`.
    frozen: what `teach` reads; also 'weights' and 'train_labels', see `Lesson`.
    preparing: learn by `method.prepare`.
    table: of what the method hears, in the place of what `teach` says.
  """
  def loss(params, collections, frozen, batch, key):
    variables = {'params': params, **collections}
    output, changed = taps_lib.observe(
        student, state.part(variables, 'student'), batch['image'], taps, train=True,
        key=key)
    teacher, members = batch['taught']
    lesson = Lesson(
        batch['image'], batch['label'], output, teacher, members, frozen.get('weights', {}),
        batch['index'], frozen.get('train_labels'), batch['epoch'], batch['key'], parallel.gather,
        batch['heard'].astype(jnp.float32) if 'heard' in batch else None)
    loss, kept = method.apply(
        state.part(variables, 'method'), lesson, mutable=['batch_stats', 'memory'],
        rngs={'dropout': key}, method='prepare' if preparing else '__call__')
    collections = {**collections, **state.join(student=changed, method=kept)}
    return loss.mean(), (collections, {'student': output.logits})

  def predict(variables, frozen, images):
    del frozen
    variables = state.part(variables, 'student')
    return {'student': taps_lib.observe(student, variables, images, ())[0].logits}

  return Task(loss, predict, frozen, partial=True, table=table or NoTable(),
              teach=lambda frozen, batch: teach(frozen, batch['image']))


def make_teach(
    taught_by: str, teacher: nn.Module, teacher_taps: Sequence[str], heads: nn.Module,
    taps: Sequence[str],
) -> Teach:
  """What a method hears that is `taught_by` 'labels', 'teacher' or 'cohort'.

  Args:
    taught_by: see `kdih.teaching.Method`.
    teacher: its module.
    teacher_taps: those of its taps that methods read.
    heads: the module of the heads.
    taps: the taps that carry a head.
  """
  if taught_by == 'labels':
    return lambda *_: (None, {})
  members = tuple(taps) if taught_by == 'cohort' else ()

  def teach(frozen, images):
    output, _ = taps_lib.observe(
        teacher, frozen['teacher'], images, tuple(dict.fromkeys((*teacher_taps, *members))))
    output = _without_gradients(output)
    logits = cohort.members_of(heads, frozen.get('heads'), output, members)
    features = {tap: output.features[tap] for tap in teacher_taps}
    return dataclasses.replace(output, features=features), logits if members else {}

  return teach


def _without_gradients(output: Output) -> Output:
  def stopped(features):  # One by one, for jax would sort the keys.
    return {tap: jax.lax.stop_gradient(feature) for tap, feature in features.items()}

  return Output(jax.lax.stop_gradient(output.logits), stopped(output.features),
                stopped(output.preactivations), jax.lax.stop_gradient(output.embedding))


def with_teacher(task: Task, teacher: nn.Module, teacher_variables: Any) -> Task:
  """`task` with a `predict` that adds the teacher's logits, to measure agreement."""
  def predict(variables, frozen, images):
    logits = task.predict(variables, frozen['task'], images)
    return {**logits, **_predict('teacher', teacher)(frozen['teacher'], None, images)}

  return Task(task.loss, predict, {'task': task.frozen, 'teacher': teacher_variables},
              reference='teacher')
