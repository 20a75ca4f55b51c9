"""A training problem: a task, its initial variables, its optimizer and its input.

The phases, the dry run, the benchmark and the studies all construct their problems here.
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
  """The data of a run: its splits, the images for training and validation, and their augmentation.

  Attributes:
    splits: the 'train' and 'test' splits.
    train_subset: int32, the sorted indices of the images of the train split to train with.
    validation_subset: int32, the sorted indices of the images of the train split to validate with.
    preprocess: normalises and augments the images for the teacher and the heads.
    student_preprocess: normalises and augments the images for students, and for heads that learn
      from a cache. It makes a few fixed views of each image if `config.compute.cache` is 'views:N',
      and equals `preprocess` otherwise.
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
    """Returns the number of images in the train split, the validation images included."""
    return self.splits.size('train')

  def train_labels(self) -> np.ndarray:
    """Returns the labels of the train split, int32 [train_size]; -1 for validation images."""
    labels = np.full(self.train_size, -1, np.int32)
    labels[self.train_subset] = self.splits.labels('train')[self.train_subset]
    return labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A training problem, from which step, state and program follow.

  Attributes:
    config: the config of the run.
    task: the loss, the prediction and the frozen variables.
    variables: the initial variables. To trace or to compile, `jax.ShapeDtypeStruct`s are enough
      here and in `task.frozen`.
    train: the config fields to train by, such as `config.student.train`.
    data: the data to train on.
    image_shape: the shape of one image, (height, width, channels).
  """

  config: 'ml_collections.ConfigDict'
  task: Task
  variables: Any
  train: 'ml_collections.ConfigDict'
  data: TrainingData
  image_shape: tuple[int, ...]

  @functools.cached_property
  def duration(self) -> optimizer.Duration:
    """Returns the converter of the durations of the phase into steps."""
    return optimizer.Duration(
        self.train.unit, len(self.data.train_subset) / self.train.global_batch_size)

  @functools.cached_property
  def tx(self) -> optax.GradientTransformation:
    """Returns the optimizer, which changes only the parameters that the loss depends on."""
    tx = optimizer.make_optimizer(
        self.train, optimizer.make_schedule(self.train, self.duration))
    return optimizer.only(tx, self._reached()) if self.task.partial else tx

  def _reached(self) -> Any:
    """Returns the parameters that the task's loss depends on, as a tree of bools."""
    def loss(given):
      signal = self.task.signals.blank(given['frozen'], 2, self.image_shape)
      return self.blank_loss(given['variables'], given['frozen'], signal, 2)

    given = {'variables': dict(self.variables), 'frozen': self.task.frozen}
    return optimizer.gradient_mask(loss, given)['variables']['params']

  def blank_loss(
      self, variables: Any, frozen: Any, signal: TeacherSignal, size: int
  ) -> jax.Array:
    """Returns the loss of a batch of `size` images of zeros, to trace its dependencies and cost."""
    params, collections = variables['params'], {
        name: tree for name, tree in variables.items() if name != 'params'}
    key = jax.random.key(0)
    terms, _ = self.task.loss(params, collections, frozen, blank_batch(size, self.image_shape),
                              signal, Moment(jnp.zeros(()), key, key))
    return total(terms)

  @functools.cached_property
  def train_step(self) -> TrainStep:
    """Returns the function that makes one update of one learner."""
    return make_train_step(
        self.task, self.tx, steps_per_epoch=self.duration.steps_per_epoch,
        accumulate=self.config.compute.accumulate, remat=self.config.compute.remat)

  def state(self, variables: Any, seed: int) -> TrainState:
    """Returns the state before the first step, from initial variables and a seed."""
    return state_lib.create(variables, self.tx, seed, self.config.data.order_seed)

  @functools.cached_property
  def loader(self) -> Loader:
    """Returns the loader of the train split."""
    return self.data.splits.loader('train')

  @property
  def resident(self) -> dict[str, Any]:
    """Returns the arrays that stay on the devices, an argument of the compiled step."""
    return {**self.loader.resident, **self.task.signals.resident}

  def compiled(self, students: Students | None = None) -> Callable:
    """Returns the training step over all devices, of one learner or of `students` together.

    See `compile_train_step`.
    """
    if students is None:
      return compile_train_step(self.train_step, self.task, self.loader)
    return compile_train_step(students.train_step, self.task, self.loader, students.first)

  def feeds(self, start: int, sizes: Sequence[int]) -> Iterator[Any]:
    """Yields the input of each call of the compiled step.

    Args:
      start: the number of the first step.
      sizes: the number of updates of each call.
    """
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
    """Returns when the loop of a phase evaluates, logs, saves and ends."""
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
    """Returns the program of the training loop.

    Args:
      phase: the name of the phase.
      evaluate: computes validation scalars from (variables, frozen variables on the devices), or
        returns None if there is no validation split.
      hooks: functions of the number of steps, called after each call of the compiled step.
      students: students that are trained together; None for one learner.
    """
    return loop.TrainProgram(
        step=self.compiled(students), frozen=devices.replicate(self.task.frozen),
        resident=self.resident, feeds=self.feeds, evaluate=evaluate,
        schedule=self.schedule(phase), hooks=hooks)
