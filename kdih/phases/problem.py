"""A training problem: a task, the variables it starts from, its optimizer and its input.

Phases, dry run, benchmark and studies all construct theirs here.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdih.config import choices
from kdih.data import augment, sampling
from kdih.data.loaders import Loader
from kdih.data.splits import Splits, split_validation
from kdih.distillation.method import total
from kdih.distillation.signal import TeacherSignal
from kdih.runtime import devices
from kdih.training import loop, optimizer, state as state_lib, steps_per_call
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.monitor import Scalars
from kdih.training.state import TrainState
from kdih.training.step import TrainStep, compile_train_step, make_train_step
from kdih.training.task import Moment, Task, blank_batch
from kdih.training.together import Students

if TYPE_CHECKING:
  import ml_collections


class TrainingData:
  """The data of a run: its splits, which images train and validate, and how they are shown.

  Attributes:
    splits: the 'train' and 'test' split.
    train_subset: int32, the images of the train split to train with, sorted.
    validation_subset: those to validate with.
    preprocess: how teacher and heads see them.
    student_preprocess: how students see them, and heads that learn from a cache: the same, or a few
      fixed views of each.
  """

  def __init__(self, config: 'ml_collections.ConfigDict', splits: Splits):
    self.splits = splits
    self.train_subset, self.validation_subset = split_validation(
        splits.size('train'), config.data.validation_fraction, config.data.validation_seed)
    self.preprocess = augment.of_config(config)
    self.student_preprocess = augment.of_config(
        config, choices.fixed_views(config.compute.cache))

  @property
  def train_size(self) -> int:
    """Images in the train split, those to validate with included."""
    return self.splits.size('train')

  def train_labels(self) -> np.ndarray:
    """Returns int32 [size of the train split], -1 for the images that are not trained with."""
    labels = np.full(self.train_size, -1, np.int32)
    labels[self.train_subset] = self.splits.labels('train')[self.train_subset]
    return labels


@dataclasses.dataclass(frozen=True)
class Problem:
  """A training problem, from which step, state and program follow.

  Attributes:
    config: of the run.
    task: what is learnt.
    variables: before the first step. Shapes suffice to trace and to compile, and likewise for the
      task's frozen variables.
    train: how it is trained, such as `config.student.train`.
    data: what it is trained on.
    image_shape: of one of them.
  """

  config: 'ml_collections.ConfigDict'
  task: Task
  variables: Any
  train: 'ml_collections.ConfigDict'
  data: TrainingData
  image_shape: tuple[int, ...]

  @functools.cached_property
  def duration(self) -> optimizer.Duration:
    """Converts the phase's durations into steps."""
    return optimizer.Duration(
        self.train.unit, len(self.data.train_subset) / self.train.global_batch_size)

  @functools.cached_property
  def tx(self) -> optax.GradientTransformation:
    """The optimizer of what the loss reaches of the parameters."""
    tx = optimizer.make_optimizer(
        self.train, optimizer.make_schedule(self.train, self.duration))
    return optimizer.only(tx, self._reached()) if self.task.partial else tx

  def _reached(self) -> Any:
    """Returns the parameters that the task's loss depends on, as a tree of bools."""
    def loss(given):
      signal = self.task.signals.blank(given['frozen'], 2, self.image_shape)
      return self.blank_loss(given['variables'], given['frozen'], signal, 2)

    given = {'variables': dict(self.variables), 'frozen': self.task.frozen}
    return optimizer.reached(loss, given)['variables']['params']

  def blank_loss(
      self, variables: Any, frozen: Any, signal: TeacherSignal, size: int
  ) -> jax.Array:
    """Returns the loss of a batch of so many zeros, to trace what it depends on and costs."""
    params, collections = variables['params'], {
        name: tree for name, tree in variables.items() if name != 'params'}
    key = jax.random.key(0)
    terms, _ = self.task.loss(params, collections, frozen, blank_batch(size, self.image_shape),
                              signal, Moment(jnp.zeros(()), key, key))
    return total(terms)

  @functools.cached_property
  def train_step(self) -> TrainStep:
    """One update, of one student."""
    return make_train_step(
        self.task, self.tx, steps_per_epoch=self.duration.steps_per_epoch,
        accumulate=self.config.compute.accumulate, remat=self.config.compute.remat)

  def state(self, variables: Any, seed: int) -> TrainState:
    """Returns the state before the first step, of such variables and a seed."""
    return state_lib.create(variables, self.tx, seed, self.config.data.order_seed)

  @functools.cached_property
  def loader(self) -> Loader:
    """That of the train split."""
    return self.data.splits.loader('train')

  @property
  def resident(self) -> dict[str, Any]:
    """The arrays that stay on the devices, as the compiled step takes them."""
    return {**self.loader.resident, **self.task.signals.resident}

  def compiled(self, students: Students | None = None) -> Callable:
    """Returns the step over all devices, see `compile_train_step`; of several students if given."""
    if students is None:
      return compile_train_step(self.train_step, self.task, self.loader)
    return compile_train_step(students.train_step, self.task, self.loader, students.first)

  def feeds(self, start: int, sizes: Sequence[int]) -> Iterator[Any]:
    """Yields what each call is fed with that makes so many updates, from step `start` on."""
    order_seed = state_lib.seed_of_order(self.config.seed, self.config.data.order_seed)
    batches = sampling.train_batches(
        self.data.train_subset, self.train.global_batch_size, order_seed, start,
        start + sum(sizes))
    fed = self.loader.feeds(
        self.task.signals.feeds(map(devices.local_slice, batches), order_seed, start))
    stacked = steps_per_call.stacked(map(devices.shard, fed), sizes)
    return steps_per_call.ahead(stacked, self.config.compute.prefetch) if self._streams else stacked

  @property
  def _streams(self) -> bool:
    return self.config.data.loader == 'streaming'

  def schedule(self, phase: str) -> LoopSchedule:
    """Returns when the loop does what in a phase of this name."""
    config, duration, train = self.config, self.duration, self.train
    return LoopSchedule(
        phase=phase, total_steps=max(duration.steps(train.length), 1),
        evaluate_every=max(duration.steps(train.evaluate_every), 1),
        log_every=config.log_every_steps, batch_size=train.global_batch_size,
        steps_per_epoch=duration.steps_per_epoch,
        max_rewinds=config.max_rewinds if config.on_nan == 'rewind' else 0,
        per_call=steps_per_call.per_call(
            config.compute.steps_per_call, config.log_every_steps, self._streams))

  def program(
      self, phase: str, evaluate: Callable[[Any, Any], Scalars | None],
      hooks: Sequence[Callable[[int], Any]] = (), students: Students | None = None,
  ) -> loop.TrainProgram:
    """Returns how the loop trains a phase of this name.

    Args:
      phase: its name.
      evaluate: (variables, frozen variables on the devices) to validation scalars.
      hooks: called after each call of the step.
      students: several that learn as one, if given.
    """
    return loop.TrainProgram(
        step=self.compiled(students), frozen=devices.replicate(self.task.frozen),
        resident=self.resident, feeds=self.feeds, evaluate=evaluate,
        schedule=self.schedule(phase), hooks=hooks)
