"""The one training loop. It knows steps, feeds and checkpoints, and nothing of distillation."""
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdih import calls, errors, parallel, preemption
from kdih.checkpoint import Checkpoints
from kdih.monitor import Monitor, Plan, Scalars
from kdih.progress import say
from kdih.state import TrainState


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


def train(
    *,
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    feeds: Callable[[int, Sequence[int]], Iterator[Any]],
    evaluate: Callable[[Any], Scalars | None],
    checkpoints: Checkpoints,
    directory: Any,
    plan: Plan,
    hooks: Sequence[Callable[[int], Any]] = (),
) -> Outcome:
  """Trains from the last checkpoint, or from `state`, to the end of the plan.

  Args:
    state: before the first step.
    step: (state, feed) to (state, metrics of the call's updates on the device, {name:
      [updates]}); may donate the state's buffers.
    feeds: (start, sizes) to what each call is fed with that makes so many updates.
    evaluate: variables to validation scalars, of which `top1` chooses the best checkpoint; None
      where nothing is validated.
    checkpoints: of this phase.
    directory: where `metrics.jsonl` and events go.
    plan: when to do what.
    hooks: called with the number of updates made, after each call.

  Raises:
    NotFiniteError: the loss is not finite, and was not after `plan.max_rewinds` rewinds, each to
      the last checkpoint from which it has not begun before, with half the learning rate; names
      phase and step.
    PreemptedError: the process was asked to stop; there is a checkpoint of its last call.
    TrainingError: a checkpoint cannot be written.
  """
  first = parallel.to_host(state)
  state, meta = checkpoints.restore_last() or (first, {})
  while True:
    monitor = Monitor(plan, meta, int(state.step), directory)
    try:
      with preemption.training():
        return _run(state, step, feeds, evaluate, checkpoints, monitor, plan, hooks)
    except errors.NotFiniteError as error:
      if _rewinds(state) >= plan.max_rewinds:
        raise errors.NotFiniteError(
            f'{error}; {checkpoints.last_good()}. Lower the learning rate, look at the data, or '
            'set config.on_nan=rewind and config.max_rewinds') from None
      pace, begun = state.pace / 2, int(state.step)
      if checkpoints.last_step == begun:  # It led here before, and is taken for the cause.
        checkpoints.drop(begun)
      state, meta = checkpoints.restore_last() or (first, {})
      state = dataclasses.replace(state, pace=pace)
      say(f'{error}; back to step {int(state.step)} with the learning rate x {float(pace):g}')
    finally:
      monitor.close()


def _run(
    state: TrainState, step, feeds, evaluate, checkpoints: Checkpoints, monitor: Monitor,
    plan: Plan, hooks,
) -> Outcome:
  """From `state`, in numpy, to the end of the plan; see `train`."""
  number, state = int(state.step), parallel.replicate(state)
  sizes = list(calls.sizes(number, plan.total_steps, plan.evaluate_every, plan.per_call))
  for size, feed in zip(sizes, feeds(number, sizes), strict=True):
    state, metrics = step(state, feed)
    number += size
    monitor.record(number, metrics)
    for hook in hooks:
      hook(number)
    leaving = preemption.reached()
    if number % plan.evaluate_every == 0 or number == plan.total_steps:
      scalars = monitor.validate(number, functools.partial(evaluate, state.variables))
      checkpoints.save(state, monitor.clock.meta, scalars)
      monitor.clock.start()
    elif leaving:
      monitor.settle(number)
      checkpoints.save(state, monitor.clock.meta, None)
    if leaving:
      raise errors.PreemptedError(f'{plan.phase}: asked to stop, and saved at step {number}; the '
                                  'same command goes on from there')
  clock = monitor.clock
  return Outcome(state, clock.meta['seconds'], clock.examples_per_second)


def _rewinds(state: TrainState) -> int:
  return round(-math.log2(float(state.pace)))
