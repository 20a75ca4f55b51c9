"""What the phases of a run share: data, modules, folders, and how each trains and measures."""
import dataclasses
import functools
from typing import Any

import jax
import ml_collections
import numpy as np

from kdih import checkpoint, cohort, data, loop, optimizer, parallel, state, steps
from kdih.evaluation import Evaluator, Metrics
from kdih.modules import Modules
from kdih.progress import say
from kdih.tasks import Task
from kdih.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What a phase ended with, and what that took over all its runs.

  Attributes:
    last: variables after the last step.
    best: variables of the best checkpoint by validation accuracy; what is exported.
    steps: updates made.
    seconds: wall time.
    examples_per_second: while training.
  """

  last: Any
  best: Any
  steps: int = 0
  seconds: float = 0.0
  examples_per_second: float = 0.0


class Experiment:
  """A run in progress.

  Args:
    config: checked.
    modules: built from it.
    workdir: open.
    sources: the 'train' and 'test' split.
  """

  def __init__(self, config: ml_collections.ConfigDict, modules: Modules, workdir: Workdir,
               sources: dict[str, data.Source]):
    self.config, self.modules, self.workdir = config, modules, workdir
    self._sources = sources
    self._loaders: dict[str, data.Loader] = {}
    self.train_subset, self.validation_subset = data.split_validation(
        len(sources['train']), config.data.validation_fraction, config.data.validation_seed)
    self.preprocess = data.make_preprocess(
        **{key: config.data[key] for key in ('mean', 'std', 'padding', 'padding_mode', 'flip')})

  def loader(self, split: str) -> data.Loader:
    """The loader of 'train' (validation included) or 'test', read when first asked for."""
    if split not in self._loaders:
      name, source = self.config.data.loader, self._sources[split]
      say(f'data: {len(source):,} images of the {split} split, {name} loader')
      self._loaders[split] = data.make_loader(name, source)
    return self._loaders[split]

  def key(self, role: int) -> jax.Array:
    """The key that initialises a role: 0 teacher, 1 heads, 2 student."""
    return jax.random.fold_in(jax.random.key(self.config.seed), role)

  def _validator(self, task: Task) -> Evaluator | None:
    if not len(self.validation_subset):
      return None
    return self._evaluator(task, 'train', self.validation_subset)

  def _evaluator(self, task: Task, split: str, subset: np.ndarray) -> Evaluator:
    return Evaluator(task=task, loader=self.loader(split), subset=subset,
                     preprocess=self.preprocess,
                     batch_size=self.config.data.eval_global_batch_size,
                     num_classes=self.modules.spec.num_classes)

  def train(
      self, phase: str, task: Task, variables: Any, train: ml_collections.ConfigDict
  ) -> Learnt:
    """Trains `variables` on `task`, from its last checkpoint if there is one."""
    loader, folder = self.loader('train'), self.workdir.phase(phase)
    duration = optimizer.Duration(train.unit, len(self.train_subset) / train.global_batch_size)
    tx = optimizer.make_optimizer(train, optimizer.make_schedule(train, duration))
    compiled = steps.make_train_step(task=task, tx=tx, gather=loader.gather,
                                     preprocess=self.preprocess, seed=self.config.seed)
    frozen = parallel.replicate(task.frozen)
    validator = self._validator(task)
    initial = state.create(variables, tx)
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
    outcome = loop.train(
        state=initial,
        step=lambda s, feed: compiled(s, frozen, loader.resident, feed),
        feeds=functools.partial(self._feeds, loader, train.global_batch_size),
        evaluate=lambda v: _averages(validator(v, frozen)) if validator else None,
        checkpoints=checkpoints, directory=folder,
        plan=self._plan(phase, train, duration), hooks=self._hooks(folder))
    best, _ = checkpoints.restore_best(initial)
    return Learnt(parallel.to_host(outcome.state.variables), best.variables,
                  int(outcome.state.step), outcome.seconds, outcome.examples_per_second)

  def _feeds(self, loader: data.Loader, batch_size: int, start: int, stop: int):
    batches = data.train_batches(self.train_subset, batch_size, self.config.seed, start, stop)
    return map(parallel.shard, loader.feeds(batches))

  def _plan(self, phase, train, duration) -> loop.Plan:
    return loop.Plan(
        phase=phase, total_steps=max(duration.steps(train.length), 1),
        evaluate_every=max(duration.steps(train.evaluate_every), 1),
        log_every=self.config.log_every_steps, batch_size=train.global_batch_size,
        steps_per_epoch=duration.steps_per_epoch)

  def _hooks(self, folder):
    if not self.config.profile:
      return ()
    from clu import periodic_actions  # Imports TensorFlow, which takes seconds.
    return (periodic_actions.Profile(
        logdir=str(folder), num_profile_steps=5, profile_duration_ms=None, first_profile=10),)

  def measure(
      self, task: Task, learnt: Learnt, test_task: Task | None = None
  ) -> dict[str, dict[str, Any]]:
    """{classifier: {'val', 'test_last', 'test_best_val': {'top1', 'top5', 'loss'}}}.

    `val` is that of the best checkpoint, None without a validation split. Here, and nowhere
    else, the test split is read; `test_task` may predict more there than `task` does.
    """
    everything = np.arange(len(self._sources['test']), dtype=np.int32)
    validate, test = self._validator(task), self._evaluator(test_task or task, 'test', everything)
    val = validate(learnt.best, task.frozen) if validate else {}
    frozen = (test_task or task).frozen
    last, best = test(learnt.last, frozen), test(learnt.best, frozen)
    return {name: {'val': val.get(name), 'test_last': last[name], 'test_best_val': best[name]}
            for name in last}


def _averages(metrics: Metrics) -> dict[str, float]:
  """The mean over what is learnt; the cohort's other members do not change."""
  learnt = [values for name, values in metrics.items() if name not in (cohort.FINAL, cohort.MEAN)]
  return {key: sum(values[key] for values in learnt) / len(learnt)
          for key in ('top1', 'loss')}
