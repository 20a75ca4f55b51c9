"""The second phase: heads on the taps of the frozen teacher learn all at once (DIH, section 3)."""
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdih import errors
from kdih.cohort import analysis, head_modules, member_weights, soft_label_mean
from kdih.cohort.members import FINAL, MEAN, cohort_logits
from kdih.distillation import losses
from kdih.models import cost, taps as taps_lib
from kdih.models.taps import Shapes
from kdih.phases import cache_plan, exported_variables, networks
from kdih.phases.experiment import Experiment, Learnt, finish, overview
from kdih.phases.teacher import load_teacher
from kdih.runtime import files
from kdih.runtime.progress import say
from kdih.training.task import LiveOutputs, Task, TeacherOutputs


def heads_task(
    teacher: nn.Module, heads: nn.Module, teacher_variables: Any, taps: Sequence[str],
    prepared: tuple[nn.Module, Any] | None = None,
    cached: tuple[TeacherOutputs, Shapes] | None = None,
) -> Task:
  """Returns how all heads learn at once from the labels; the backbone is frozen (DIH, section 3).

  The loss is the sum of the heads' cross-entropies. `predict` gives the whole cohort.

  Args:
    teacher: the backbone.
    heads: the module of all heads.
    teacher_variables: those of the backbone.
    taps: the taps that carry a head.
    prepared: the backbone and its variables as the loss applies them, from
      `frozen_teacher.prepare`.
    cached: where a step finds the features, one behind the other, and the shapes of these; in the
      place of the backbone.
  """
  backbone, variables = prepared or (teacher, teacher_variables)
  table, shapes = cached or (LiveOutputs(), {})

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
    members = cohort_logits(
        teacher, heads, {**frozen, 'heads': variables}, images, taps)
    return {**members, MEAN: soft_label_mean.mean_logits(members)}

  return Task(loss, predict, {'teacher': teacher_variables, 'backbone': variables},
              reference=FINAL, table=table)


def _cut(rows: jax.Array, shapes: Shapes) -> taps_lib.Features:
  """Cuts [batch, numbers] into the float32 features of these shapes, one behind the other."""
  ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
  parts = jnp.split(rows.astype(jnp.float32), ends[:-1], axis=-1)
  return {tap: part.reshape(-1, *shape)
          for (tap, shape), part in zip(shapes.items(), parts, strict=True)}


def run_heads(experiment: Experiment) -> dict:
  """Trains all heads at once on the frozen teacher, or takes those of `config.heads.variables`."""
  config, built = experiment.config.heads, experiment.networks
  if finished := experiment.workdir.result('heads'):
    return finished
  teacher, owner = load_teacher(experiment)
  taps = tuple(built.taps)
  prepared = experiment.prepare_teacher(built.teacher, teacher, taps)
  cached = None
  if experiment.config.compute.cache_taps and not config.variables:
    cached = cache_plan.taps_table(experiment, *prepared), built.taps
  task = heads_task(built.teacher, built.heads, teacher, taps, prepared, cached)
  variables = networks.initialise_heads(built, experiment.key(1))
  sizes = {tap: cost.count_parameters(variables['params'][head_modules.param_name(tap)])
           for tap in built.taps}
  for tap, size in sizes.items():
    say(f'heads: {tap}, feature {built.taps[tap]}, {size:,} parameters')
  if config.variables:
    variables, _ = exported_variables.load_heads(config.variables, built, owner)
    learnt = Learnt(variables, variables)
  else:
    overview(experiment, 'heads', config.kind, variables)
    learnt = experiment.train('heads', task, variables, config.train)
  measured = experiment.measure(task, learnt)
  members = {name: measured[name] for name in (*built.taps, FINAL, MEAN)}
  for tap, size in sizes.items():
    members[tap]['parameters'] = size
  weights = {}
  if len(experiment.validation_subset):  # Without a validation split, nothing tells who is right.
    found = member_weights.weigh(*predict_cohort(experiment, task, learnt.best, 'validation'))
    weights = {rule: numbers.tolist() for rule, numbers in found.items()}
  meta = {'model': exported_variables.describe_heads(built), 'teacher': owner, 'weights': weights}
  return finish(experiment, 'heads', learnt, meta, {
      **members[MEAN], 'members': members, 'weights': weights,
      'analysis': analysis.analyse(*predict_cohort(experiment, task, learnt.best, 'test'))})


def load_heads(experiment: Experiment, owner: str) -> tuple[Any, dict[str, list[float]]]:
  """Returns the variables of the finished heads phase, and the members' weights, by rule.

  Args:
    experiment: the run.
    owner: fingerprint of its teacher.

  Raises:
    ConfigError: the variables or the weights are not those that the phase finished with.
  """
  folder = experiment.teachers.path / 'heads'
  path, finished = folder / 'result.json', experiment.teachers.result('heads') or {}
  variables, meta = exported_variables.load_heads(
      folder / 'variables', experiment.networks, owner, finished)
  weights = finished.get('weights', {})
  if weights != meta.get('weights', weights):  # An earlier version did not export them.
    raise errors.ConfigError(
        f'--workdir: the members\' weights in {path} are not those that were exported with the '
        f'heads; put the file back from a copy, or remove {folder} to do the phase anew')
  if not _are_weights(weights, len(experiment.networks.taps) + 1):
    raise files.damaged(path, 'its weights are not a number for each member')
  return variables, weights


def _are_weights(weights: Any, num_members: int) -> bool:
  return isinstance(weights, dict) and all(
      isinstance(numbers, list) and len(numbers) == num_members
      and all(type(number) in (int, float) for number in numbers) for numbers in weights.values())


def predict_cohort(
    experiment: Experiment, task: Task, variables: Any, split: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns logits of every member, in cohort order, and the labels."""
  logits, labels = experiment.predict(task, variables, split)
  return {name: logits[name] for name in (*experiment.networks.taps, FINAL)}, labels
