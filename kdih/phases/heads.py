"""The second phase: heads on the taps of the frozen teacher learn all at once (DIH, section 3)."""
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from kdih import errors
from kdih.cohort import analysis, head_modules, member_weights, soft_label_mean
from kdih.cohort.members import FINAL, MEAN, Teach, cohort_logits
from kdih.distillation import losses
from kdih.distillation.signal import TeacherSignal
from kdih.models import cost, taps as taps_lib
from kdih.phases import cache_plan, exported_variables, networks
from kdih.phases.experiment import Experiment, PhaseOutcome, finish, overview
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem, TrainingData
from kdih.phases.teacher import load_teacher
from kdih.training.task import LiveSignals, Preprocess, Signals, Task

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)


def heads_task(
    built: Networks, teacher_variables: Any, preprocess: Preprocess, signals: Signals, backbone: Any
) -> Task:
  """Returns how all heads learn at once from the labels; the backbone is frozen (DIH, section 3).

  The loss is the sum of the heads' cross-entropies, each a term 'ce/TAP'. `predict` gives the whole
  cohort.

  Args:
    built: the networks.
    teacher_variables: those of the teacher, for `predict`.
    preprocess: shows the images.
    signals: give the features at the taps.
    backbone: the same variables made quick, which live signals read; see `prepare_teacher`.
  """
  def loss(params, collections, frozen, batch, signal, moment):
    del frozen, moment
    features = dict(jax.lax.stop_gradient(signal.features))
    logits: Any = built.heads.apply({'params': params}, features)
    terms = {f'ce/{tap}': losses.cross_entropy(z, batch.labels) for tap, z in logits.items()}
    return terms, (collections, logits)

  def predict(variables, frozen, images):
    members = cohort_logits(
        built.teacher, built.heads, {**frozen, 'heads': variables}, images, tuple(built.taps))
    return {**members, MEAN: soft_label_mean.mean_logits(members)}

  return Task(loss, predict, {'teacher': teacher_variables, 'backbone': backbone}, preprocess,
              signals, reference=FINAL)


def features_at_taps(built: Networks, backbone: nn.Module) -> Teach:
  """Returns (frozen, images) to the features at the taps that carry a head."""
  def teach(frozen, images):
    output, _ = taps_lib.observe(backbone, frozen['backbone'], images, tuple(built.taps))
    return TeacherSignal(features=output.features)

  return teach


def heads_problem(
    config: 'ml_collections.ConfigDict', built: Networks, data: TrainingData, variables: Any,
    teacher_variables: Any, make_table: Callable[[Teach, Any], Signals] | None = None,
) -> Problem:
  """Returns the training problem of this phase.

  Args:
    config: of the run.
    built: its networks.
    data: its data.
    variables: of the heads, to begin with.
    teacher_variables: those of the teacher.
    make_table: from (`features_at_taps`, what they read) to the cache of these, if heads learn from
      one.
  """
  backbone, prepared = networks.prepare_teacher(
      config, built, built.teacher, teacher_variables, tuple(built.taps))
  teach = features_at_taps(built, backbone)
  if make_table:
    signals, preprocess = make_table(teach, {'backbone': prepared}), data.student_preprocess
    prepared = {}
  else:
    signals, preprocess = LiveSignals(teach, config.compute.accumulate), data.preprocess
  task = heads_task(built, teacher_variables, preprocess, signals, prepared)
  return Problem(config, task, variables, config.heads.train, data, built.spec.image_shape)


def run_heads(experiment: Experiment) -> dict:
  """Trains all heads at once on the frozen teacher, or takes those of `config.heads.variables`."""
  config, built = experiment.config.heads, experiment.networks
  if finished := experiment.workdir.result('heads'):
    return finished
  teacher, owner = load_teacher(experiment)
  variables = networks.initialise_heads(built, experiment.key(1))
  sizes = {tap: cost.count_parameters(variables['params'][head_modules.param_name(tap)])
           for tap in built.taps}
  for tap, size in sizes.items():
    logger.info(f'heads: {tap}, feature {built.taps[tap]}, {size:,} parameters')
  if config.variables:
    variables, _ = exported_variables.load_heads(config.variables, built, owner)
  else:
    overview(experiment, 'heads', config.kind, variables)
  cached = experiment.config.compute.cache_taps and not config.variables
  problem = heads_problem(
      experiment.config, built, experiment.data, variables, teacher,
      functools.partial(cache_plan.taps_table, experiment) if cached else None)
  outcome = (PhaseOutcome(variables, variables) if config.variables
             else experiment.train('heads', problem))
  measured = experiment.measure(problem.task, outcome)
  members = {name: measured[name] for name in (*built.taps, FINAL, MEAN)}
  for tap, size in sizes.items():
    members[tap]['parameters'] = size
  weights = {}
  predicted = functools.partial(predict_cohort, experiment, problem.task, outcome.best)
  if len(experiment.data.validation_subset):  # Else nothing tells which member is right.
    found = member_weights.weigh(*predicted('validation'))
    weights = {rule: numbers.tolist() for rule, numbers in found.items()}
  meta = {'model': exported_variables.describe_heads(built), 'teacher': owner, 'weights': weights}
  return finish(experiment, 'heads', outcome, meta, {
      **members[MEAN], 'members': members, 'weights': weights,
      'analysis': analysis.analyse(*predicted('test'))})


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
  return variables, weights


def predict_cohort(
    experiment: Experiment, task: Task, variables: Any, split: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns logits of every member, in cohort order, and the labels."""
  logits, labels = experiment.predict(task, variables, split)
  return {name: logits[name] for name in (*experiment.networks.taps, FINAL)}, labels
