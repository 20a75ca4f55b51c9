"""What is seen of a phase that trains: its metrics, checked, written and shown, and its speed."""
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from kdih import errors
from kdih.runtime import devices
from kdih.runtime.progress import Progress
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.metric_log import MetricWriter

logger = logging.getLogger(__name__)

Scalars = dict[str, float]
_SHOWN_TERMS = 6  # A line has room for so many; `metrics.jsonl` has all.


def _order(name: str) -> int:
  """Returns the place of a metric: the loss, its terms, the accuracy."""
  return {'loss': 0, 'top1': 2}.get(name, 1)


def _shown(means: dict[str, float]) -> dict[str, float]:
  """Returns what the progress line shows: not the term of a loss that has one, nor very many."""
  terms = [name for name in means if _order(name) == 1]
  return {name: value for name, value in means.items()
          if name not in terms or 1 < len(terms) <= _SHOWN_TERMS}


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


class Monitor:
  """Looks at the metrics now and then: checks, writes and shows them.

  Args:
    schedule: of the phase.
    meta: of the checkpoint that it goes on from; {} at its beginning.
    start: updates made before.
    directory: where `metrics.jsonl` and events go.
    events: whether there are any.
  """

  def __init__(
      self, schedule: LoopSchedule, meta: dict, start: int, directory: Any, events: bool):
    self._schedule, self._first = schedule, start + 1
    self._pending: list[Any] = []  # Of calls, on the device.
    self._seen = start  # Updates whose metrics are on the host.
    self._values: list[Scalars] = []  # Of updates that no line tells of yet.
    self._sizes: set[int] = set()
    self._compiled = False  # Whether a pending call was the first of its size.
    self._writer = MetricWriter(directory, start, events)
    self._progress = Progress(
        phase=schedule.phase, total_steps=schedule.total_steps, start_step=start,
        steps_per_epoch=schedule.steps_per_epoch, batch_size=schedule.batch_size)
    self.clock = _Clock(meta, schedule.batch_size)

  def record(self, number: int, metrics: Any) -> None:
    """Takes the metrics, [updates] and still on the device, of the call that ends at `number`."""
    size = len(metrics['loss'])
    self._compiled |= size not in self._sizes
    self._sizes.add(size)
    self._pending.append(metrics)
    if any(map(self._is_due, range(number - size + 1, number + 1))):
      self._look()

  def _is_due(self, number: int) -> bool:
    """Whether a line tells of the updates up to this one."""
    return number == self._first or self._schedule.logs_after(number)

  def restart(self) -> None:
    """Starts the clock again, after what does not count as training."""
    self.clock.start()

  def settle(self, number: int) -> None:
    """Makes sure that all metrics up to `number` are finite, and written."""
    if self._pending:
      self._look()
    if self._values:
      self._write(number)
    self._writer.flush()

  def validate(self, number: int, evaluate: Callable[[], Scalars | None]) -> Scalars | None:
    """Evaluates, once all is settled."""
    scalars = evaluate()
    if scalars:
      self._require_finite(number, 'validation loss', scalars['loss'])
      self._writer.write(number, {f'val/{name}': value for name, value in scalars.items()})
      self._writer.flush()
      logger.info(f'{self._schedule.phase}: step {number} validation '
                  + ' '.join(f'{name} {value:.4f}' for name, value in scalars.items()))
    return scalars

  def _look(self) -> None:
    """Fetches what is pending, and writes the lines that are due."""
    fetched = devices.to_host(self._pending)
    self._pending = []
    # What compiled says nothing about speed.
    self.clock.lap(0 if self._compiled else sum(len(metrics['loss']) for metrics in fetched))
    self._compiled = False
    for metrics in fetched:
      names = sorted(metrics, key=_order)
      for numbers in zip(*(metrics[name] for name in names), strict=True):
        values = dict(zip(names, numbers, strict=True))  # Of one update.
        self._seen += 1
        self._require_finite(self._seen, 'loss', values['loss'])
        self._values.append(values)
        if self._is_due(self._seen):
          self._write(self._seen)

  def _write(self, number: int) -> None:
    values, self._values = self._values, []
    means = {name: float(sum(v[name] for v in values)) / len(values) for name in values[0]}
    speed = self.clock.examples_per_second
    self._writer.write(number, {**{f'train/{k}': v for k, v in means.items()},
                                'examples_per_second': speed})
    self._progress.update(number, _shown(means), speed)

  def _require_finite(self, number: int, what: str, value: float) -> None:
    if not math.isfinite(value):
      raise errors.NotFiniteError(
          f'{self._schedule.phase}: the {what} is {value} at step {number}')

  def close(self) -> None:
    """Ends the files and the bar."""
    self._writer.close()
    self._progress.close()
