"""The one training loop. It knows steps, feeds and checkpoints, and nothing of distillation."""
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdih import errors, parallel, preemption
from kdih.checkpoint import Checkpoints
from kdih.progress import Progress, say
from kdih.state import TrainState
from kdih.writers import MetricWriter

Scalars = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
  """When the loop does what, in steps.

  Attributes:
    phase: its name, for messages.
    total_steps: updates in all.
    evaluate_every: updates between evaluations, each followed by a checkpoint.
    log_every: updates between looks at the metrics.
    batch_size: global, for examples per second.
    steps_per_epoch: for the progress line.
    max_rewinds: how often a loss that is not finite sends it back to the last checkpoint.
  """

  phase: str
  total_steps: int
  evaluate_every: int
  log_every: int
  batch_size: int
  steps_per_epoch: float
  max_rewinds: int


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


class _Clock:
  """Seconds of the phase and its training speed, carried over a resume in `meta`."""

  def __init__(self, meta: dict, batch_size: int):
    self._before, self._begun = meta.get('seconds', 0.0), time.monotonic()
    self._steps, self._training = meta.get('timed_steps', 0), meta.get('timed_seconds', 0.0)
    self._batch_size, self._mark = batch_size, self._begun

  def start(self) -> None:
    """Training goes on from here; what came before (compilation, evaluation) does not count."""
    self._mark = time.monotonic()

  def lap(self, steps: int) -> None:
    """Counts `steps` since the last lap or start; a lap of none counts no time either."""
    now = time.monotonic()
    if steps:
      self._steps, self._training = self._steps + steps, self._training + now - self._mark
    self._mark = now

  @property
  def examples_per_second(self) -> float:
    return self._steps * self._batch_size / self._training if self._training else 0.0

  @property
  def meta(self) -> dict:
    return {'seconds': self._before + time.monotonic() - self._begun,
            'timed_steps': self._steps, 'timed_seconds': self._training}


class _Monitor:
  """Looks at the metrics now and then: checks, writes and shows them."""

  def __init__(self, plan: Plan, meta: dict, start: int, directory: Any, events: bool):
    self._plan, self._first = plan, start + 1
    self._pending: list[tuple[int, Any]] = []
    self._writer = MetricWriter(directory, start, events)
    self._progress = Progress(
        phase=plan.phase, total_steps=plan.total_steps, start_step=start,
        steps_per_epoch=plan.steps_per_epoch, batch_size=plan.batch_size)
    self.clock = _Clock(meta, plan.batch_size)

  def record(self, number: int, metrics: Any) -> None:
    """Takes the metrics of update `number`, still on the device."""
    self._pending.append((number, metrics))
    if number == self._first or len(self._pending) == self._plan.log_every:
      self._look(number)

  def settle(self, number: int) -> None:
    """Makes sure that all metrics up to `number` are finite, and written."""
    if self._pending:
      self._look(number)
    self._writer.flush()

  def validate(self, number: int, evaluate: Callable[[], Scalars | None]) -> Scalars | None:
    """Evaluates off the clock, once all is settled."""
    self.settle(number)
    scalars = evaluate()
    if scalars:
      self._require_finite(number, 'validation loss', scalars['loss'])
      self._writer.write(number, {f'val/{name}': value for name, value in scalars.items()})
      self._writer.flush()
      say(f'{self._plan.phase}: step {number} validation '
          + ' '.join(f'{name} {value:.4f}' for name, value in scalars.items()))
    return scalars

  def _look(self, number: int) -> None:
    numbers, metrics = zip(*self._pending, strict=True)
    self._pending = []
    metrics = parallel.to_host(metrics)
    # The first step of a run compiles; it says nothing about speed.
    self.clock.lap(0 if number == self._first else len(metrics))
    for at, values in zip(numbers, metrics, strict=True):
      self._require_finite(at, 'loss', values['loss'])
    means = {name: float(sum(m[name] for m in metrics)) / len(metrics) for name in metrics[0]}
    speed = self.clock.examples_per_second
    self._writer.write(number, {**{f'train/{k}': v for k, v in means.items()},
                                'examples_per_second': speed})
    self._progress.update(number, means, speed)

  def _require_finite(self, number: int, what: str, value: float) -> None:
    if not math.isfinite(value):
      raise errors.NotFiniteError(f'{self._plan.phase}: the {what} is {value} at step {number}')

  def close(self) -> None:
    self._writer.close()
    self._progress.close()


def train(
    *,
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    feeds: Callable[[int, int], Iterator[Any]],
    evaluate: Callable[[Any], Scalars | None],
    checkpoints: Checkpoints,
    directory: Any,
    plan: Plan,
    hooks: Sequence[Callable[[int], Any]] = (),
    events: bool = True,
) -> Outcome:
  """Trains from the last checkpoint, or from `state`, to the end of the plan.

  Args:
    state: before the first step.
    step: (state, feed) to (state, scalar metrics on the device); may donate the state's buffers.
    feeds: (start, stop) to what each of these steps is fed with.
    evaluate: variables to validation scalars, of which `top1` chooses the best checkpoint; None
      where nothing is validated.
    checkpoints: of this phase.
    directory: where `metrics.jsonl` and events go.
    plan: when to do what.
    hooks: called with the number of updates made, after each.
    events: whether TensorBoard events are written, which takes TensorFlow.

  Raises:
    NotFiniteError: the loss is not finite, and was not after `plan.max_rewinds` rewinds, each to
      the last checkpoint from which it has not begun before, with half the learning rate; names
      phase and step.
    PreemptedError: the process was asked to stop; there is a checkpoint of its last step.
    TrainingError: a checkpoint cannot be written.
  """
  first = parallel.to_host(state)
  state, meta = checkpoints.restore_last() or (first, {})
  while True:
    monitor = _Monitor(plan, meta, int(state.step), directory, events)
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
    state: TrainState, step, feeds, evaluate, checkpoints: Checkpoints, monitor: _Monitor,
    plan: Plan, hooks,
) -> Outcome:
  """From `state`, in numpy, to the end of the plan; see `train`."""
  start, state = int(state.step), parallel.replicate(state)
  for number, feed in enumerate(feeds(start, plan.total_steps), start + 1):
    state, metrics = step(state, feed)
    monitor.record(number, metrics)
    for hook in hooks:
      hook(number)
    leaving = preemption.reached(number)
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
