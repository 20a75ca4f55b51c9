"""What the phases of a run share: data, networks, folders, and how each trains and measures."""
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdih.cohort import frozen_teacher
from kdih.cohort.members import FINAL, MEAN
from kdih.config import choices, protocol
from kdih.data import augment, sampling
from kdih.data.splits import Splits, split_validation
from kdih.models import cost
from kdih.phases import exported_variables, identity as identity_lib, resume
from kdih.phases.identity import Identity
from kdih.phases.networks import Networks
from kdih.runtime import devices
from kdih.runtime.files import write_atomically
from kdih.runtime.progress import say
from kdih.runtime.workdir import Workdir, resolved
from kdih.training import checkpoints as checkpoints_lib, loop, optimizer, state, steps_per_call
from kdih.training.evaluation import Evaluator, Metrics
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.step import make_train_step
from kdih.training.task import Learning, Task

if TYPE_CHECKING:
  import ml_collections

_FIRST_PROFILED = 10  # Updates: by then all is compiled, but for the last calls.


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What a phase ended with, and what that took over all its runs.

  Attributes:
    last: variables after the last step.
    best: variables of the best checkpoint by validation accuracy; what is exported.
    steps: updates made.
    seconds: wall time.
    examples_per_second: while training.
    rewinds: how often a loss that was not finite halved the learning rate.
  """

  last: Any
  best: Any
  steps: int = 0
  seconds: float = 0.0
  examples_per_second: float = 0.0
  rewinds: int = 0


class Experiment:
  """A run in progress.

  Args:
    config: checked.
    networks: built from it.
    workdir: checked; `pipeline.run` opens it.
    splits: the 'train' and 'test' split.
    teachers: the workdir that holds teacher and heads; `workdir` itself unless given.
    identity: what it is made of; None where nothing is trained.
  """

  def __init__(self, config: 'ml_collections.ConfigDict', networks: Networks, workdir: Workdir,
               splits: Splits, teachers: Workdir | None = None,
               identity: Identity | None = None):
    if splits.classes != networks.spec.classes:  # TFDS learns some names while it prepares data.
      networks = dataclasses.replace(
          networks, spec=dataclasses.replace(networks.spec, classes=splits.classes))
    self.config, self.networks, self.workdir = config, networks, workdir
    self.teachers = teachers or workdir
    self.splits, self.identity = splits, identity
    self._validated: tuple[Task, Evaluator] | None = None
    self.train_subset, self.validation_subset = split_validation(
        splits.size('train'), config.data.validation_fraction, config.data.validation_seed)
    self.preprocess = augment.of_config(config)
    # What students see: the same, or a few of its views.
    self.student_preprocess = augment.of_config(
        config, choices.fixed_views(config.compute.cache))

  @property
  def train_size(self) -> int:
    """Images in the train split, those to validate with included."""
    return self.splits.size('train')

  def open(self) -> None:
    """Makes the workdir and writes down what the run is made of, as far as it is known by now.

    Raises:
      ConfigError: its teacher was done anew, and has become another one.
    """
    assert self.identity, 'a run that trains has an identity'
    teacher, accepted = identity_lib.of_teacher(self.teachers), self.identity.accepted
    if teacher != self.identity.teacher:
      accepted += tuple(resume.check_teacher(self.workdir, teacher, self.config.accept))
    self.identity = dataclasses.replace(self.identity, teacher=teacher, accepted=accepted)
    identity_lib.record(self.workdir, self.identity, self.config)

  @property
  def described_data(self) -> dict[str, Any]:
    """What exported variables say of their data: its fields, shape, classes and content."""
    spec = self.networks.spec
    return {**protocol.described(resolved(self.config)), 'image_shape': list(spec.image_shape),
            'classes': list(spec.classes) or None,
            'content': self.identity.data if self.identity else None}

  def train_labels(self) -> np.ndarray:
    """Returns int32 [size of the train split], -1 for the images that are not trained with."""
    labels = np.full(self.splits.size('train'), -1, np.int32)
    labels[self.train_subset] = self.splits.labels('train')[self.train_subset]
    return labels

  def key(self, role: int) -> jax.Array:
    """Returns the key that initialises a role.

    0 is the teacher, 1 the heads, 2 the student, 3 a method's own modules, from 4 on assistants.
    """
    return jax.random.fold_in(jax.random.key(self.config.seed), role)

  def prepare_teacher(
      self, module: nn.Module, variables: Any, taps: Sequence[str]
  ) -> tuple[nn.Module, Any]:
    """Returns a frozen teacher made quick, as the config says; see `frozen_teacher.prepare`."""
    compute = self.config.compute
    return frozen_teacher.prepare(
        module, variables, taps, self.networks.spec.image_shape,
        fold_batch_norm=compute.fold_batch_norm, dtype=compute.teacher_dtype)

  def _validator(self, task: Task) -> Evaluator | None:
    """Returns that of the validation split: one for training and `measure`, to compile it once."""
    if not len(self.validation_subset):
      return None
    if self._validated is None or self._validated[0] is not task:
      self._validated = (task, self._evaluator(task, 'train', self.validation_subset))
    return self._validated[1]

  def _evaluator(self, task: Task, split: str, subset: np.ndarray) -> Evaluator:
    return Evaluator(task=task, loader=self.splits.loader(split), subset=subset,
                     preprocess=self.preprocess,
                     batch_size=self.config.data.eval_global_batch_size,
                     num_classes=self.networks.spec.num_classes)

  def train(
      self, phase: str, task: Task, variables: Any, train: 'ml_collections.ConfigDict'
  ) -> Learnt:
    """Trains `variables` on `task`, from its last checkpoint if there is one."""
    learning = self.learning(task, variables, train)
    learner = self.learner(phase, variables, learning.tx)
    outcome = loop.train(self.program(phase, [learning], train), learner)
    best, _ = learner.checkpoints.restore_best()
    return Learnt(devices.to_host(outcome.state.variables), best.variables,
                  int(outcome.state.step), outcome.seconds, outcome.examples_per_second,
                  outcome.rewinds)

  def learner(
      self, phase: str, variables: Any, tx: optax.GradientTransformation
  ) -> loop.Learner:
    """Returns what `program` trains, with its checkpoints."""
    folder = self.workdir.phase(phase)
    initial = state.create(variables, tx, self.config.seed, self.config.data.order_seed)
    checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints', initial)
    return loop.Learner(initial, checkpoints, folder, phase)

  def program(
      self, phase: str, learning: Sequence[Learning], train: 'ml_collections.ConfigDict',
      together_by: str = 'unrolled',
  ) -> loop.Program:
    """Returns how a phase trains: its learners, each with its learning, as `together_by` says."""
    config, compute, task = self.config, self.config.compute, learning[0].task
    loader, duration = self.splits.loader('train'), self._duration(train)
    streams = config.data.loader == 'streaming'
    cached = phase.startswith('student/') or phase == 'heads' and compute.cache_taps
    compiled = make_train_step(
        learning=learning, gather=loader.gather,
        preprocess=self.student_preprocess if cached else self.preprocess,
        steps_per_epoch=duration.steps_per_epoch, accumulate=compute.accumulate,
        remat=compute.remat, together_by=together_by, resident=loader.resident, table=task.table)
    resident = {**loader.resident, **task.table.resident}
    frozen, validator = devices.replicate(task.frozen), self._validator(task)
    schedule = LoopSchedule(
        phase=phase, total_steps=max(duration.steps(train.length), 1),
        evaluate_every=max(duration.steps(train.evaluate_every), 1),
        log_every=config.log_every_steps, batch_size=train.global_batch_size,
        steps_per_epoch=duration.steps_per_epoch,
        max_rewinds=config.max_rewinds if config.on_nan == 'rewind' else 0,
        per_call=steps_per_call.per_call(compute.steps_per_call, config.log_every_steps, streams))

    def feeds(start: int, sizes: Sequence[int]) -> Iterator[Any]:
      of_order = state.seed_of_order(config.seed, config.data.order_seed)
      batches = sampling.train_batches(
          self.train_subset, train.global_batch_size, of_order, start, start + sum(sizes))
      fed = loader.feeds(task.table.feeds(map(devices.share, batches), of_order, start))
      stacked = steps_per_call.stacked(map(devices.shard, fed), sizes)
      return steps_per_call.ahead(stacked, compute.prefetch) if streams else stacked

    return loop.Program(
        step=lambda states, feed: compiled(states, frozen, resident, feed), feeds=feeds,
        evaluate=lambda v: _averages(validator(v, frozen)) if validator else None,
        schedule=schedule, hooks=self._hooks(self.workdir.phase(phase), schedule))

  def _duration(self, train: 'ml_collections.ConfigDict') -> optimizer.Duration:
    return optimizer.Duration(train.unit, len(self.train_subset) / train.global_batch_size)

  def learning(
      self, task: Task, variables: Any, train: 'ml_collections.ConfigDict'
  ) -> Learning:
    """Returns the task, with an optimizer of what it reaches of `variables`."""
    tx = optimizer.make_optimizer(train, optimizer.make_schedule(train, self._duration(train)))
    return Learning(
        task, optimizer.only(tx, self._reached(task, variables)) if task.partial else tx)

  def _reached(self, task: Task, variables: Any) -> Any:
    """Returns the parameters that the task's loss depends on, as a tree of bools."""
    # As in a step: models change what they keep in place where it is of numpy.
    collections = {name: jax.tree.map(jnp.asarray, tree)
                   for name, tree in variables.items() if name != 'params'}
    batch = {'image': jnp.zeros((2, *self.networks.spec.image_shape)),
             'label': jnp.zeros(2, jnp.int32), 'index': jnp.zeros(2, jnp.int32),
             'epoch': jnp.zeros(()), 'key': jax.random.key(0),
             **({'heard': jnp.zeros((2, task.table.width))} if task.table.width else {})}

    def loss(params):
      taught = {**batch, 'taught': task.teach(task.frozen, batch)}
      return task.loss(params, collections, task.frozen, taught, jax.random.key(0))[0]

    return optimizer.reached(loss, variables['params'])

  def _hooks(self, folder: Any, schedule: LoopSchedule) -> tuple:
    if not self.config.profile:
      return ()
    from clu import periodic_actions  # Imports TensorFlow, which takes seconds.
    first = steps_per_call.end_from(_FIRST_PROFILED, schedule.evaluate_every, schedule.per_call)
    return (periodic_actions.Profile(
        logdir=str(folder), num_profile_steps=5, profile_duration_ms=None, first_profile=first),)

  def predict(
      self, task: Task, variables: Any, split: str
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns logits of every classifier, and labels, of the 'validation' or 'test' images."""
    subset = (self.validation_subset if split == 'validation'
              else np.arange(self.splits.size('test'), dtype=np.int32))
    evaluator = self._evaluator(task, 'test' if split == 'test' else 'train', subset)
    return evaluator.predict(variables, task.frozen)

  def measure(
      self, task: Task, learnt: Learnt, test_task: Task | None = None
  ) -> dict[str, dict[str, Any]]:
    """Returns {classifier: {'val', 'test_last', 'test_best_val': {'top1', 'top5', 'loss'}}}.

    `val` is that of the best checkpoint, None without a validation split. Here, and nowhere
    else, the test split is read; `test_task` may predict more there than `task` does.
    """
    everything = np.arange(self.splits.size('test'), dtype=np.int32)
    validate, test = self._validator(task), self._evaluator(test_task or task, 'test', everything)
    val = validate(learnt.best, task.frozen) if validate else {}
    frozen = (test_task or task).frozen
    last, best = test(learnt.last, frozen), test(learnt.best, frozen)
    return {name: {'val': val.get(name), 'test_last': last[name], 'test_best_val': best[name]}
            for name in last}


def _averages(metrics: Metrics) -> dict[str, float]:
  """Returns the mean over what is learnt; the cohort's other members do not change."""
  learnt = [values for name, values in metrics.items() if name not in (FINAL, MEAN)]
  return {key: sum(values[key] for values in learnt) / len(learnt)
          for key in ('top1', 'loss')}


def overview(experiment: Experiment, phase: str, model: str, variables: Any) -> None:
  """Says how large what is to be trained is, and writes a table of its parameters."""
  from clu import parameter_overview  # The benchmark, which imports this file, does without clu.

  path, params = experiment.workdir.phase(phase) / 'parameters.txt', variables['params']
  write_atomically(path, parameter_overview.get_parameter_overview(params) + '\n')
  say(f'{phase}: {model}, {cost.count_parameters(params):,} parameters, listed in {path}')


def _taught_by(experiment: Experiment, phase: str) -> str:
  """Returns who teaches in a phase, as `Method.taught_by`."""
  if phase.startswith('student/'):
    return experiment.networks.methods[phase.split('/')[1]].taught_by
  return {'teacher': 'labels', 'heads': 'teacher'}[phase]


def finish(experiment: Experiment, phase: str, learnt: Learnt, meta: dict, report: dict) -> dict:
  """Exports the best variables, then writes the result: a finished phase has both.

  Args:
    experiment: the run.
    phase: its name.
    learnt: what it ended with.
    meta: what the exported variables are of; what its 'data' holds goes before the experiment's.
    report: what was measured: 'val', 'test_last', 'test_best_val', and more.
  """
  made_of: dict[str, Any] = {}
  if experiment.identity:
    made_of = {'protocol': protocol.averaged(resolved(experiment.config)),
               'identity': experiment.identity.of_phase(phase, _taught_by(experiment, phase)),
               'accepted': list(experiment.identity.accepted)}
  meta = {**meta, 'data': {**experiment.described_data, **meta.get('data', {})},
          'val': report['val'], 'test_best_val': report['test_best_val']}
  fingerprint = exported_variables.save(
      experiment.workdir.phase(phase) / 'variables', learnt.best, meta)
  return experiment.workdir.finish(phase, {
      **report,
      'parameters': cost.count_parameters(learnt.best['params']),
      'fingerprint': fingerprint,
      'seed': experiment.config.seed,
      'steps': learnt.steps,
      'seconds': learnt.seconds,
      'examples_per_second': learnt.examples_per_second,
      'rewinds': learnt.rewinds,
      **made_of,
  })
