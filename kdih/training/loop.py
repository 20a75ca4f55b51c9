"""The one training loop. It knows steps, feeds and checkpoints, and nothing of distillation."""
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
  """What training gave: the last state, and the cost over all runs of the phase."""

  state: TrainState
  seconds: float
  examples_per_second: float

  @property
  def rewinds(self) -> int:
    """How often the learning rate was halved."""
    return _rewinds(self.state)


@dataclasses.dataclass(frozen=True)
class Learner:
  """What is trained, and where it is kept.

  Attributes:
    state: before the first step.
    checkpoints: of this phase.
    directory: where `metrics.jsonl` and events go.
    phase: its name, for messages.
    events: whether TensorBoard events are written, which takes TensorFlow.
  """

  state: TrainState
  checkpoints: Checkpoints
  directory: Any
  phase: str
  events: bool = True

  def begin(self) -> tuple[TrainState, dict]:
    """Returns the state to go on from, in numpy, and the meta of its checkpoint."""
    return self.checkpoints.restore_last() or (devices.to_host(self.state), {})

  def monitor(self, schedule: LoopSchedule, meta: dict, start: int) -> Monitor:
    """Returns what looks at its metrics from step `start` on."""
    schedule = dataclasses.replace(schedule, phase=self.phase)
    return Monitor(schedule, meta, start, self.directory, self.events)

  def save(
      self, number: int, state: TrainState, monitor: Monitor,
      evaluate: Callable[[Any], Scalars | None] | None,
  ) -> None:
    """Writes the checkpoint of step `number`, evaluated first if there is `evaluate`."""
    scalars = evaluate and monitor.validate(number, functools.partial(evaluate, state.variables))
    self.checkpoints.save(state, monitor.clock.meta, scalars)


@dataclasses.dataclass(frozen=True)
class TrainProgram:
  """How a learner is trained.

  Attributes:
    step: (state, frozen, resident, feed) to (state, metrics of the call's updates on the device,
      {name: [updates]}); may donate the state's buffers.
    frozen: variables on the devices that nothing changes.
    resident: arrays that stay on the devices.
    feeds: (start, sizes) to what each call is fed with that makes so many updates.
    evaluate: (variables, frozen) to validation scalars, of which `top1` chooses the best
      checkpoint; None where nothing is validated.
    schedule: when to do what.
    hooks: called with the number of updates made, after each call.
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

  Raises:
    NotFiniteError: the loss is not finite, and was not after `schedule.max_rewinds` rewinds, each
      to the last checkpoint from which it has not begun before, with half the learning rate; names
      phase and step.
    PreemptedError: the process was asked to stop; there is a checkpoint of its last call.
    TrainingError: a checkpoint cannot be written.
  """
  checkpoints = learner.checkpoints
  state, meta = learner.begin()
  while True:
    try:
      last, monitor = train_from(program, learner, state, meta, int(state.step))
      return Outcome(last, monitor.clock.meta['seconds'], monitor.clock.examples_per_second)
    except errors.NotFiniteError as error:
      if _rewinds(state) >= program.schedule.max_rewinds:
        raise errors.NotFiniteError(
            f'{error}; {checkpoints.last_good()}. Lower the learning rate, look at the data, or '
            'set config.on_nan=rewind and config.max_rewinds') from None
      pace, begun = state.pace / 2, int(state.step)
      if checkpoints.last_step == begun:  # It led here before, and is taken for the cause.
        checkpoints.drop(begun)
      state, meta = learner.begin()
      state = dataclasses.replace(state, pace=pace)
      logger.warning(
          f'{error}; back to step {int(state.step)} with the learning rate x {float(pace):g}')


def train_from(
    program: TrainProgram, learner: Any, state: Any, meta: Any, number: int
) -> tuple[Any, Any]:
  """Trains a state to the end of the schedule; returns the last one, and its monitor.

  Args:
    program: how.
    learner: a `Learner`, or what stands for several.
    state: in numpy, of what `program.step` updates.
    meta: of its checkpoint.
    number: updates made so far.

  Raises:
    NotFiniteError: the loss is not finite.
    PreemptedError, TrainingError: see `train`.
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
      if evaluating or leaving:  # Off the clock.
        monitor.settle(number)
        learner.save(number, state, monitor, evaluate if evaluating else None)
        monitor.restart()
      if leaving:
        raise errors.PreemptedError(f'{schedule.phase}: asked to stop, and saved at step {number}; '
                                    'the same command goes on from there')
  return state, monitor


def _rewinds(state: TrainState) -> int:
  return round(-math.log2(float(state.pace)))
