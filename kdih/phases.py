"""The phases. Each trains, measures, exports its variables and writes its result."""
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from kdih import (
  analysis,
  cache,
  cohort,
  cost,
  errors,
  exported,
  fingerprint,
  modules,
  tasks,
)
from kdih.experiment import Experiment, Learnt
from kdih.progress import say
from kdih.workdir import write_atomically

_TOLERANCE = 0.005  # Between a stored accuracy and the one measured again, as fractions.


def count(params: Any) -> int:
  """Numbers in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def run_teacher(experiment: Experiment) -> dict:
  """Trains the teacher, or takes the one that `config.teacher.variables` names."""
  config, built = experiment.config.teacher, experiment.modules
  if finished := experiment.workdir.result('teacher'):
    return finished
  task = tasks.teacher_task(built.teacher)
  stored: dict[str, Any] = {}
  if config.variables:
    variables, stored = exported.load_teacher(config.variables, experiment.config, built)
    learnt = Learnt(variables, variables)
  else:
    variables = modules.initialise(built.teacher, experiment.key(0), built.spec.image_shape)
    overview(experiment, 'teacher', config.name, variables)
    learnt = experiment.train('teacher', task, variables, config.train)
  measured = experiment.measure(task, learnt)['teacher']
  _check_stored(config.variables, stored, experiment, measured)
  meta = {'model': exported.describe_model(experiment.config, 'teacher', built.spec.num_classes)}
  flops = cost.forward_flops(built.teacher, learnt.best, built.spec.image_shape)
  return finish(experiment, 'teacher', learnt, meta,
                {**measured, 'model': config.name, 'flops': flops})


def overview(experiment: Experiment, phase: str, model: str, variables: Any) -> None:
  """Says how large what is to be trained is, and writes a table of its parameters."""
  path = experiment.workdir.phase(phase) / 'parameters.txt'
  write_atomically(path, parameter_overview.get_parameter_overview(variables['params']) + '\n')
  say(f'{phase}: {model}, {count(variables["params"]):,} parameters, listed in {path}')


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
  return exported.load_teacher(path, experiment.config, experiment.modules)[0]


def run_heads(experiment: Experiment) -> dict:
  """Trains all heads at once on the frozen teacher, or takes those of `config.heads.variables`."""
  config, built = experiment.config.heads, experiment.modules
  if finished := experiment.workdir.result('heads'):
    return finished
  teacher = load_teacher(experiment)
  owner = fingerprint.of(teacher)
  taps = tuple(built.taps)
  prepared = experiment.prepare_teacher(built.teacher, teacher, taps)
  cached = None
  if experiment.config.compute.cache_taps and not config.variables:
    cached = cache.taps_table(experiment, *prepared), built.taps
  task = tasks.heads_task(built.teacher, built.heads, teacher, taps, prepared, cached)
  variables = modules.initialise_heads(built, experiment.key(1))
  sizes = {tap: count(variables['params'][cohort.param_name(tap)]) for tap in built.taps}
  for tap, size in sizes.items():
    say(f'heads: {tap}, feature {built.taps[tap]}, {size:,} parameters')
  if config.variables:
    variables, _ = exported.load_heads(config.variables, built, owner)
    learnt = Learnt(variables, variables)
  else:
    overview(experiment, 'heads', config.kind, variables)
    learnt = experiment.train('heads', task, variables, config.train)
  measured = experiment.measure(task, learnt)
  members = {name: measured[name] for name in (*built.taps, cohort.FINAL, cohort.MEAN)}
  for tap, size in sizes.items():
    members[tap]['parameters'] = size
  meta = {'model': exported.describe_heads(built), 'teacher': owner}
  return finish(experiment, 'heads', learnt, meta, {
      **members[cohort.MEAN], 'members': members,
      'weights': _member_weights(experiment, task, learnt),
      'analysis': analysis.analyse(*cohort_logits(experiment, task, learnt.best, 'test'))})


def _member_weights(experiment: Experiment, task: tasks.Task, learnt: Learnt) -> dict:
  """{rule: a weight for every member, in cohort order}; {} without a validation split."""
  if not len(experiment.validation_subset):
    return {}
  weights = cohort.weigh(*cohort_logits(experiment, task, learnt.best, 'validation'))
  return {rule: numbers.tolist() for rule, numbers in weights.items()}


def cohort_logits(
    experiment: Experiment, task: tasks.Task, variables: Any, split: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Logits of every member, in cohort order, and the labels."""
  logits, labels = experiment.predict(task, variables, split)
  return {name: logits[name] for name in (*experiment.modules.taps, cohort.FINAL)}, labels


def finish(experiment: Experiment, phase: str, learnt: Learnt, meta: dict, report: dict) -> dict:
  """Exports the best variables, then writes the result: a finished phase has both.

  Args:
    experiment: the run.
    phase: its name.
    learnt: what it ended with.
    meta: what the exported variables are of.
    report: what was measured: 'val', 'test_last', 'test_best_val', and more.
  """
  meta = {**meta, 'data': experiment.data_identity, 'val': report['val'],
          'test_best_val': report['test_best_val']}
  exported.save(experiment.workdir.phase(phase) / 'variables', learnt.best, meta)
  return experiment.workdir.finish(phase, {
      **report,
      'parameters': count(learnt.best['params']),
      'fingerprint': fingerprint.of(learnt.best),
      'seed': experiment.config.seed,
      'steps': learnt.steps,
      'seconds': learnt.seconds,
      'examples_per_second': learnt.examples_per_second,
      'rewinds': learnt.rewinds,
  })
