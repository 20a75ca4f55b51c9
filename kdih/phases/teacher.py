"""The first phase: the teacher learns from the labels, or one that exists is taken."""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from kdih import errors
from kdih.distillation import losses
from kdih.models import cost, taps
from kdih.phases import exported_variables, networks
from kdih.phases.experiment import Experiment, Learnt, finish, overview
from kdih.runtime.progress import say
from kdih.training.task import Task

_TOLERANCE = 0.005  # Between a stored accuracy and the one measured again, as fractions.


def predict_as(name: str, model: nn.Module) -> Callable[[Any, Any, jax.Array], dict]:
  """(variables, frozen, images) to {name: logits of the model in evaluation mode}."""
  def predict(variables, frozen, images):
    del frozen
    return {name: taps.observe(model, variables, images, ())[0].logits}
  return predict


def teacher_task(model: nn.Module) -> Task:
  """The teacher learns from the labels."""
  def loss(params, collections, frozen, batch, key):
    del frozen
    output, collections = taps.observe(
        model, {'params': params, **collections}, batch['image'], (), train=True, key=key)
    loss = losses.cross_entropy(output.logits, batch['label']).mean()
    return loss, (collections, {'teacher': output.logits})

  return Task(loss, predict_as('teacher', model), {})


def run_teacher(experiment: Experiment) -> dict:
  """Trains the teacher, or takes the one that `config.teacher.variables` names."""
  config, built = experiment.config.teacher, experiment.networks
  if finished := experiment.workdir.result('teacher'):
    return finished
  task = teacher_task(built.teacher)
  stored: dict[str, Any] = {}
  if config.variables:
    variables, stored = exported_variables.load_teacher(config.variables, experiment.config, built)
    learnt = Learnt(variables, variables)
  else:
    variables = networks.initialise(built.teacher, experiment.key(0), built.spec.image_shape)
    overview(experiment, 'teacher', config.name, variables)
    learnt = experiment.train('teacher', task, variables, config.train)
  measured = experiment.measure(task, learnt)['teacher']
  _check_stored(config.variables, stored, experiment, measured)
  meta = {'model': exported_variables.describe_model(
      experiment.config, 'teacher', built.spec.num_classes)}
  flops = cost.forward_flops(built.teacher, learnt.best, built.spec.image_shape)
  return finish(experiment, 'teacher', learnt, meta,
                {**measured, 'model': config.name, 'flops': flops})


def _check_stored(path: str, stored: dict, experiment: Experiment, measured: dict) -> None:
  if not stored:
    return
  same_data = stored['data'] == experiment.data_identity
  for name in ('val', 'test_best_val'):
    before, now = stored.get(name), measured[name]
    if not (same_data and before and now):
      continue
    say(f'teacher: {name} accuracy {now["top1"]:.4f}, stored {before["top1"]:.4f}')
    if abs(before['top1'] - now['top1']) > _TOLERANCE:
      raise errors.ConfigError(
          f'config.teacher.variables: {path!r} was stored with {name} accuracy '
          f'{before["top1"]:.4f} and has {now["top1"]:.4f} now; its files or the data changed')
  if not same_data:
    say('teacher: measured on other data than it was stored with; accuracies are not compared')


def load_teacher(experiment: Experiment) -> Any:
  """The variables of the finished teacher phase."""
  path = experiment.teachers.path / 'teacher' / 'variables'
  return exported_variables.load_teacher(path, experiment.config, experiment.networks)[0]
