"""The second phase: heads are trained on the intermediate layers of the frozen teacher.

DIH (arXiv 2103.00497, section 3) mounts a classifier head on each tap of the trained teacher,
freezes the backbone, and trains all heads together:

    L(head_1, ..., head_k) = sum_i CE(head_i(stop_gradient(tap_i(x))), y)

The backbone runs in evaluation mode, so its batch statistics do not change, and only the heads have
gradients and optimizer state. The k heads and the teacher's own classifier form the cohort.
"""
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
  """Returns the task that trains all heads together from the labels (DIH, section 3).

  The loss is the sum of the heads' cross-entropies, each of which is a term 'ce/TAP'. `predict`
  returns the logits of the whole cohort and their mean.

  Args:
    built: the networks.
    teacher_variables: variables of the teacher, for `predict`.
    preprocess: normalises and augments the images.
    signals: provides the features at the taps.
    backbone: variables of the teacher as `prepare_teacher` returns them, from which live signals
      are computed.
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

  return Task(
      loss=loss, predict=predict, frozen={'teacher': teacher_variables, 'backbone': backbone},
      preprocess=preprocess, signals=signals, reference=FINAL)


def features_at_taps(built: Networks, backbone: nn.Module) -> Teach:
  """Returns a function (frozen, images) -> the features at the taps that carry a head."""
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
    config: the config of the run.
    built: the networks of the run.
    data: the data of the run.
    variables: initial variables of the heads.
    teacher_variables: variables of the teacher.
    make_table: builds the cache of the features from (`features_at_taps`, frozen variables); None
      if the heads learn from the live backbone.
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
  return Problem(config=config, task=task, variables=variables, train=config.heads.train, data=data,
                 image_shape=built.spec.image_shape)


def run_heads(experiment: Experiment) -> dict:
  """Trains all heads, or loads those of `config.heads.variables`; measures and exports them.

  Returns:
    The result of the phase; that of an earlier run if the phase is finished.
  """
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
  outcome = (PhaseOutcome(last=variables, best=variables) if config.variables
             else experiment.train('heads', problem))
  measured = experiment.measure(problem.task, outcome)
  members = {name: measured[name] for name in (*built.taps, FINAL, MEAN)}
  for tap, size in sizes.items():
    members[tap]['parameters'] = size
  weights = {}
  predicted = functools.partial(predict_cohort, experiment, problem.task, outcome.best)
  if len(experiment.data.validation_subset):  # The weights are fitted to the validation split.
    by_rule = member_weights.weigh(*predicted('validation'))
    weights = {rule: numbers.tolist() for rule, numbers in by_rule.items()}
  meta = {'model': exported_variables.describe_heads(built), 'teacher': owner, 'weights': weights}
  return finish(experiment, 'heads', outcome, meta, {
      **members[MEAN], 'members': members, 'weights': weights,
      'analysis': analysis.analyse(*predicted('test'))})


def load_heads(experiment: Experiment, owner: str) -> tuple[Any, dict[str, list[float]]]:
  """Returns the variables of the finished heads phase, and {rule: weights of the members}.

  Args:
    experiment: the run.
    owner: the fingerprint of the teacher.

  Raises:
    ConfigError: the files in the workdir are not those that the phase wrote.
  """
  folder = experiment.teachers.path / 'heads'
  path, finished = folder / 'result.json', experiment.teachers.result('heads') or {}
  variables, meta = exported_variables.load_heads(
      folder / 'variables', experiment.networks, owner, finished)
  weights = finished.get('weights', {})
  if weights != meta.get('weights', weights):  # Earlier versions exported no weights.
    raise errors.ConfigError(
        f'--workdir: the member weights in {path} differ from those that were exported with the '
        f'heads; restore the file from a copy, or remove {folder} to train the heads again')
  return variables, weights


def predict_cohort(
    experiment: Experiment, task: Task, variables: Any, split: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns ({member: logits}, labels) of a split, with the members in cohort order."""
  logits, labels = experiment.predict(task, variables, split)
  return {name: logits[name] for name in (*experiment.networks.taps, FINAL)}, labels
