"""The training loop of every phase: steps, feeds and checkpoints, and nothing of distillation."""
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdih import errors
from kdih.runtime import devices, preemption
from kdih.training import steps_per_call
from kdih.training.checkpoints import Checkpoints
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.monitor import Monitor, Scalars
from kdih.training.state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of training a phase.

  Attributes:
    state: the state after the last step.
    seconds: wall-clock time of the phase, including the time before it was resumed.
    examples_per_second: training speed, without compilation and evaluation.
  """

  state: TrainState
  seconds: float
  examples_per_second: float

  @property
  def rewinds(self) -> int:
    """Returns how often training went back to a checkpoint with half the learning rate."""
    return _rewinds(self.state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
  """A state that is trained, with its checkpoints and its metrics.

  Attributes:
    state: the state before the first step.
    checkpoints: the checkpoints of the phase.
    directory: folder of `metrics.jsonl` and of the TensorBoard events.
    phase: name of the phase, for messages.
    events: whether TensorBoard events are written, which imports TensorFlow.
  """

  state: TrainState
  checkpoints: Checkpoints
  directory: Any
  phase: str
  events: bool = True

  def begin(self) -> tuple[TrainState, dict]:
    """Returns (state in numpy, meta) of the last checkpoint, or (initial state, {}) without one."""
    return self.checkpoints.restore_last(self.state)

  def monitor(self, schedule: LoopSchedule, meta: dict, start: int) -> Monitor:
    """Returns the monitor of the metrics from step `start` on."""
    schedule = dataclasses.replace(schedule, phase=self.phase)
    return Monitor(schedule, meta, start, self.directory, self.events)

  def save(
      self, number: int, state: TrainState, monitor: Monitor,
      evaluate: Callable[[Any], Scalars | None] | None,
  ) -> None:
    """Writes the checkpoint of step `number`, after an evaluation if it is a scheduled one.

    Without `evaluate` it is one that is written because the run is asked to stop.
    """
    scalars = evaluate and monitor.validate(number, functools.partial(evaluate, state.variables))
    self.checkpoints.save(state, monitor.clock.meta, scalars, scheduled=evaluate is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
  """The functions and arrays that train a learner.

  Attributes:
    step: (state, frozen, resident, feed) to (state, metrics of the call's updates on the device,
      {name: [updates]}); it may donate the buffers of the state.
    frozen: variables on the devices that training does not change.
    resident: arrays that stay on the devices.
    feeds: (start, sizes) to an iterator over the feeds of the calls, where a call from step `start`
      on makes as many updates as its size.
    evaluate: (variables, frozen) to validation scalars, or to None without a validation split;
      `top1` chooses the best checkpoint.
    schedule: when to evaluate, to log, and to stop.
    hooks: functions that are called with the number of updates made, after each call.
  """

  step: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
  frozen: Any
  resident: Any
  feeds: Callable[[int, Sequence[int]], Iterator[Any]]
  evaluate: Callable[[Any, Any], Scalars | None]
  schedule: LoopSchedule
  hooks: Sequence[Callable[[int], Any]] = ()


def train(program: TrainProgram, learner: Learner) -> Outcome:
  """Trains from the last checkpoint, or from the learner's state, to the end of the schedule.

  When the loss is not finite, training rewinds to the last checkpoint with half the learning rate,
  at most `schedule.max_rewinds` times; see `Checkpoints.rewind`.

  Raises:
    NotFiniteError: the loss is not finite, and no rewind is left; the message names phase and step.
    PreemptedError: the process received SIGTERM; a checkpoint of its last step was written.
    TrainingError: a checkpoint cannot be written.
  """
  checkpoints = learner.checkpoints
  state, meta = learner.begin()
  if 0 < int(state.step) < program.schedule.total_steps:
    logger.info(f'{learner.phase}: resumes from step {int(state.step)}')
  while True:
    try:
      last, monitor = train_from(program, learner, state, meta, int(state.step))
      return Outcome(last, monitor.clock.meta['seconds'], monitor.clock.examples_per_second)
    except errors.NotFiniteError as error:
      if _rewinds(state) >= program.schedule.max_rewinds:
        raise errors.NotFiniteError(
            f'{error}; {checkpoints.last_good()}. Lower the learning rate, look at the data, or '
            'set config.on_nan=rewind and config.max_rewinds') from None
      checkpoints.rewind(float(state.learning_rate_scale))
      state, meta = learner.begin()
      logger.warning(f'{error}; back to step {int(state.step)} with the learning rate x '
                     f'{float(state.learning_rate_scale):g}')


def train_from(
    program: TrainProgram, learner: Any, state: Any, meta: Any, number: int
) -> tuple[Any, Any]:
  """Trains to the end of the schedule, and returns the last state and the monitor.

  Args:
    program: how to train.
    learner: a `Learner`, or an object with its methods for several learners at once.
    state: the state in numpy, as `program.step` takes it.
    meta: meta of the state's checkpoint.
    number: updates made so far.

  Raises:
    NotFiniteError: the loss is not finite.
    PreemptedError, TrainingError: as `train`.
  """
  def evaluate(variables: Any) -> Scalars | None:
    return program.evaluate(variables, program.frozen)

  schedule = program.schedule
  sizes = list(steps_per_call.sizes(
      number, schedule.total_steps, schedule.evaluate_every, schedule.per_call))
  with contextlib.closing(learner.monitor(schedule, meta, number)) as monitor, \
      preemption.training():
    state = devices.replicate(state)
    for size, feed in zip(sizes, program.feeds(number, sizes), strict=True):
      state, metrics = program.step(state, program.frozen, program.resident, feed)
      number += size
      monitor.record(number, metrics)
      for hook in program.hooks:
        hook(number)
      leaving, evaluating = preemption.reached(), schedule.evaluates_after(number)
      if evaluating or leaving:  # The clock of the training speed does not count this.
        monitor.settle(number)
        learner.save(number, state, monitor, evaluate if evaluating else None)
        monitor.restart()
      if leaving:
        raise errors.PreemptedError(f'{schedule.phase}: asked to stop, and saved at step {number}; '
                                    'run the same command again to resume')
  return state, monitor


def _rewinds(state: TrainState) -> int:
  return round(-math.log2(float(state.learning_rate_scale)))
