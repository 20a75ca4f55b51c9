"""The one training loop. It knows steps, feeds and checkpoints, and nothing of distillation."""
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdih import errors
from kdih.runtime import devices, preemption
from kdih.runtime.progress import say
from kdih.training import steps_per_call
from kdih.training.checkpoints import Checkpoints
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.monitor import Monitor, Scalars
from kdih.training.state import TrainState


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
  """One of the students that learn from the same batches; most often there is one.

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


@dataclasses.dataclass(frozen=True)
class Program:
  """How learners are trained, which is the same for all of them.

  Attributes:
    step: (states, feed) to (states, metrics of the call's updates on the device, {name:
      [updates]} for each state); may donate the states' buffers.
    feeds: (start, sizes) to what each call is fed with that makes so many updates.
    evaluate: variables to validation scalars, of which `top1` chooses the best checkpoint; None
      where nothing is validated.
    schedule: when to do what.
    hooks: called with the number of updates made, after each call.
  """

  step: Callable[[tuple[TrainState, ...], Any], tuple[tuple[TrainState, ...], Any]]
  feeds: Callable[[int, Sequence[int]], Iterator[Any]]
  evaluate: Callable[[Any], Scalars | None]
  schedule: LoopSchedule
  hooks: Sequence[Callable[[int], Any]] = ()


def train(program: Program, learner: Learner) -> Outcome:
  """Trains from the last checkpoint, or from the learner's state, to the end of the schedule.

  Raises:
    NotFiniteError: the loss is not finite, and was not after `schedule.max_rewinds` rewinds, each
      to the last checkpoint from which it has not begun before, with half the learning rate; names
      phase and step.
    PreemptedError: the process was asked to stop; there is a checkpoint of its last call.
    TrainingError: a checkpoint cannot be written.
  """
  checkpoints, first = learner.checkpoints, devices.to_host(learner.state)
  state, meta = checkpoints.restore_last() or (first, {})
  while True:
    try:
      return train_together(program, [learner], [(state, meta)])[0]
    except errors.NotFiniteError as error:
      if _rewinds(state) >= program.schedule.max_rewinds:
        raise errors.NotFiniteError(
            f'{error}; {checkpoints.last_good()}. Lower the learning rate, look at the data, or '
            'set config.on_nan=rewind and config.max_rewinds') from None
      pace, begun = state.pace / 2, int(state.step)
      if checkpoints.last_step == begun:  # It led here before, and is taken for the cause.
        checkpoints.drop(begun)
      state, meta = checkpoints.restore_last() or (first, {})
      state = dataclasses.replace(state, pace=pace)
      say(f'{error}; back to step {int(state.step)} with the learning rate x {float(pace):g}')


def train_together(
    program: Program, learners: Sequence[Learner], begun: Sequence[tuple[TrainState, dict]]
) -> list[Outcome]:
  """Trains learners to the end of the schedule.

  Args:
    program: how.
    learners: which.
    begun: from where: a state in numpy and the meta of a checkpoint for each, all of one step.

  Raises:
    NotFiniteError: the loss of a learner is not finite.
    PreemptedError, TrainingError: see `train`.
  """
  schedule, number = program.schedule, int(begun[0][0].step)
  states = tuple(state for state, _ in begun)
  with contextlib.ExitStack() as stack:
    monitors = []
    for learner, (_, meta) in zip(learners, begun, strict=True):
      own = dataclasses.replace(schedule, phase=learner.phase)
      monitors.append(Monitor(own, meta, number, learner.directory, learner.events))
      stack.callback(monitors[-1].close)
    stack.enter_context(preemption.training())
    states = devices.replicate(states)
    sizes = list(steps_per_call.sizes(
        number, schedule.total_steps, schedule.evaluate_every, schedule.per_call))
    for size, feed in zip(sizes, program.feeds(number, sizes), strict=True):
      states, metrics = program.step(states, feed)
      number += size
      for monitor, values in zip(monitors, metrics, strict=True):
        monitor.record(number, values)
      for hook in program.hooks:
        hook(number)
      leaving, evaluating = preemption.reached(), schedule.evaluates_after(number)
      if evaluating or leaving:
        _save(learners, monitors, number, states, program.evaluate if evaluating else None)
      if leaving:
        raise errors.PreemptedError(f'{schedule.phase}: asked to stop, and saved at step {number}; '
                                    'the same command goes on from there')
  return [Outcome(state, monitor.clock.meta['seconds'], monitor.clock.examples_per_second)
          for state, monitor in zip(states, monitors, strict=True)]


def _save(
    learners: Sequence[Learner], monitors: Sequence[Monitor], number: int,
    states: tuple[TrainState, ...], evaluate: Callable[[Any], Scalars | None] | None,
) -> None:
  """Writes a checkpoint of each, evaluated first if there is `evaluate`, off their clocks."""
  for monitor in monitors:
    monitor.settle(number)
  for learner, monitor, state in zip(learners, monitors, states, strict=True):
    scalars = evaluate and monitor.validate(number, functools.partial(evaluate, state.variables))
    learner.checkpoints.save(state, monitor.clock.meta, scalars)
  for monitor in monitors:
    monitor.clock.start()


def _rewinds(state: TrainState) -> int:
  return round(-math.log2(float(state.pace)))
