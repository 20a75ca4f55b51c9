"""The first phase: the teacher is trained by cross-entropy, or an existing one is loaded.

DIH (arXiv 2103.00497, section 3) starts from a trained teacher. Its loss is L = CE(t_0, y), with
the teacher's logits t_0 and the labels y.
"""
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from kdih import errors
from kdih.distillation import losses
from kdih.models import cost, taps
from kdih.phases import exported_variables, networks
from kdih.phases.experiment import Experiment, PhaseOutcome, finish, overview
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem, TrainingData
from kdih.runtime import digests
from kdih.training.task import Preprocess, Task

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)

_TOLERANCE = 0.005  # The allowed difference of the stored and the measured accuracy, as fractions.


def predict_as(name: str, model: nn.Module) -> Callable[[Any, Any, jax.Array], dict]:
  """Returns a function (variables, frozen, images) -> {name: logits in evaluation mode}."""
  def predict(variables, frozen, images):
    del frozen
    return {name: taps.observe(model, variables, images, ())[0].logits}
  return predict


def teacher_task(model: nn.Module, preprocess: Preprocess) -> Task:
  """Returns the task that trains the teacher by cross-entropy with the labels."""
  def loss(params, collections, frozen, batch, signal, moment):
    del frozen, signal
    output, collections = taps.observe(
        model, {'params': params, **collections}, batch.images, (), train=True,
        key=moment.dropout_key)
    ce = losses.cross_entropy(output.logits, batch.labels)
    return {'ce': ce}, (collections, {'teacher': output.logits})

  return Task(
      loss=loss, predict=predict_as('teacher', model), frozen={}, preprocess=preprocess)


def teacher_problem(
    config: 'ml_collections.ConfigDict', built: Networks, data: TrainingData, variables: Any
) -> Problem:
  """Returns the training problem of this phase, which starts from `variables`."""
  return Problem(config=config, task=teacher_task(built.teacher, data.preprocess),
                 variables=variables, train=config.teacher.train, data=data,
                 image_shape=built.spec.image_shape)


def run_teacher(experiment: Experiment) -> dict:
  """Trains the teacher, or loads that of `config.teacher.variables`; measures and exports it.

  Returns:
    The result of the phase; that of an earlier run if the phase is finished.
  """
  config, built = experiment.config.teacher, experiment.networks
  if finished := experiment.workdir.result('teacher'):
    return finished
  meta: dict[str, Any] = {'model': exported_variables.describe_model(
      experiment.config, 'teacher', built.spec.num_classes)}
  stored: dict[str, Any] = {}
  if config.variables:
    variables, stored = exported_variables.load_teacher(config.variables, experiment.config, built)
    _introduce(variables, stored['data'], experiment)
    meta['data'] = {name: stored['data'][name] for name in ('mean', 'std')}
  else:
    variables = networks.initialise(built.teacher, experiment.key(0), built.spec.image_shape)
    overview(experiment, 'teacher', config.name, variables)
  problem = teacher_problem(experiment.config, built, experiment.data, variables)
  outcome = (PhaseOutcome(last=variables, best=variables) if config.variables
             else experiment.train('teacher', problem))
  measured = experiment.measure(problem.task, outcome)['teacher']
  if stored:
    _check_accuracy(config.variables, stored, experiment, measured)
  flops = cost.forward_flops(built.teacher, outcome.best, built.spec.image_shape)
  return finish(experiment, 'teacher', outcome, meta,
                {**measured, 'model': config.name, 'flops': flops})


def _introduce(variables: Any, data: dict, experiment: Experiment) -> None:
  """Logs how an existing teacher differs from one that the run would have trained."""
  if taps.INPUT in variables:
    mean, std = (', '.join(f'{number:g}' for number in np.ravel(data[name]))
                 for name in ('mean', 'std'))
    logger.info('teacher: keeps the normalisation that it was trained with, '
                f'mean ({mean}), std ({std})')
  known = data.get('classes') and experiment.networks.spec.classes
  same = data.get('content') and _same_data(data, experiment.described_data)
  if not (known or same):
    logger.warning(
        'teacher: the class names of the teacher or of the data set are unknown, and the order of '
        'the classes is assumed to be the same; check that it is')


def _check_accuracy(path: str, stored: dict, experiment: Experiment, measured: dict) -> None:
  """Logs the accuracy of an existing teacher here and where it was exported.

  Raises:
    ConfigError: the two accuracies differ, although the data are the same.
  """
  same_data = _same_data(stored['data'], experiment.described_data)
  for name, words in (('val', 'val top-1'), ('test_best_val', 'test top-1 (best val)')):
    before, now = _top1(stored.get(name)), _top1(measured[name])
    if before is None or now is None:
      continue
    logger.info(f'teacher: {words} {now:.4f} here, {before:.4f} where it was exported'
                + ('' if same_data else ', on other data or splits'))
    if same_data and abs(before - now) > _TOLERANCE:
      raise errors.ConfigError(
          f'config.teacher.variables: {path!r} was stored with {words} {before:.4f} but '
          f'has {now:.4f} now on the same data; its files or the images have changed; restore '
          'them, or name another teacher')


def _same_data(stored: dict, here: dict) -> bool:
  """Returns whether all fields that both descriptions contain are equal.

  The normalisation is not compared, because a teacher keeps its own.
  """
  known = [name for name, value in here.items()
           if name not in ('mean', 'std') and value is not None and stored.get(name) is not None]
  return all(digests.of_json(stored[name]) == digests.of_json(here[name]) for name in known)


def _top1(measured: Any) -> float | None:
  """Returns the accuracy in the measurements of a split; None if there is none."""
  top1 = measured.get('top1') if isinstance(measured, dict) else None
  return top1 if isinstance(top1, int | float) else None


def load_teacher(experiment: Experiment) -> tuple[Any, str]:
  """Returns the variables of the finished teacher phase, and their fingerprint.

  Raises:
    ConfigError: the files in the workdir are not those that the phase wrote.
  """
  path = experiment.teachers.path / 'teacher' / 'variables'
  variables, meta = exported_variables.load_teacher(
      path, experiment.config, experiment.networks, experiment.teachers.result('teacher') or {})
  return variables, exported_variables.fingerprint(meta)
