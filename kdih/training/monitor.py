"""The metrics of a phase while it trains: checked, written and displayed, with its speed."""
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
_MAX_TERMS = 6  # The progress line has room for no more; `metrics.jsonl` holds all.


def _order(name: str) -> int:
  """Returns the sort key of a metric: first the loss, then its terms, then the accuracy."""
  return {'loss': 0, 'top1': 2}.get(name, 1)


def _displayed(means: dict[str, float]) -> dict[str, float]:
  """Returns the metrics for the progress line: without terms if there is one, or too many."""
  terms = [name for name in means if _order(name) == 1]
  return {name: value for name, value in means.items()
          if name not in terms or 1 < len(terms) <= _MAX_TERMS}


class _Clock:
  """The seconds of a phase and its training speed, which `meta` carries over when it resumes."""

  def __init__(self, meta: dict, batch_size: int):
    self._before, self._begun = meta.get('seconds', 0.0), time.monotonic()
    self._steps, self._training = meta.get('timed_steps', 0), meta.get('timed_seconds', 0.0)
    self._batch_size, self._mark = batch_size, self._begun

  def start(self) -> None:
    """Starts a lap, without counting the time since the last one (compilation, evaluation)."""
    self._mark = time.monotonic()

  def lap(self, steps: int) -> None:
    """Ends a lap of `steps` steps; a lap of 0 steps does not count its time."""
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
  """Fetches the metrics when a log line is due, checks that they are finite, and writes them.

  Args:
    schedule: schedule of the phase.
    meta: meta of the checkpoint that is resumed; {} at the beginning of a phase.
    start: updates made before.
    directory: folder of `metrics.jsonl` and of the TensorBoard events.
    events: whether TensorBoard events are written.
  """

  def __init__(
      self, schedule: LoopSchedule, meta: dict, start: int, directory: Any, events: bool):
    self._schedule = schedule
    self._pending: list[Any] = []  # Metrics of calls, still on the device.
    self._seen = start  # The last update whose metrics are on the host.
    self._values: list[Scalars] = []  # Metrics of updates since the last log line.
    self._sizes: set[int] = set()  # Updates per call; the step is compiled for each size.
    self._compiled = False  # Whether a pending call includes a compilation.
    self._writer = MetricWriter(directory, start, events)
    self._progress = Progress(
        phase=schedule.phase, total_steps=schedule.total_steps, start_step=start,
        steps_per_epoch=schedule.steps_per_epoch, batch_size=schedule.batch_size)
    self.clock = _Clock(meta, schedule.batch_size)

  def record(self, number: int, metrics: Any) -> None:
    """Records the metrics of the call that ends at update `number`.

    Args:
      number: updates made so far.
      metrics: {name: [updates]}, still on the device.
    """
    size = len(metrics['loss'])
    self._compiled |= size not in self._sizes
    self._sizes.add(size)
    self._pending.append(metrics)
    if any(map(self._is_due, range(number - size + 1, number + 1))):
      self._fetch()

  def _is_due(self, number: int) -> bool:
    """Returns whether a log line follows update `number`; the first one shows that all is well."""
    return number == 1 or self._schedule.logs_after(number)

  def restart(self) -> None:
    """Starts the clock again after an evaluation, which does not count as training time."""
    self.clock.start()

  def settle(self, number: int) -> None:
    """Checks and writes all metrics up to update `number`."""
    if self._pending:
      self._fetch()
    if self._values:
      self._write(number)
    self._writer.flush()

  def validate(self, number: int, evaluate: Callable[[], Scalars | None]) -> Scalars | None:
    """Returns the validation scalars, after checking and writing them; see `settle`.

    Raises:
      NotFiniteError: the validation loss is not finite.
    """
    scalars = evaluate()
    if scalars:
      self._require_finite(number, 'validation loss', scalars['loss'])
      self._writer.write(number, {f'val/{name}': value for name, value in scalars.items()})
      self._writer.flush()
      logger.info(f'{self._schedule.phase}: step {number} validation '
                  + ' '.join(f'{name} {value:.4f}' for name, value in scalars.items()))
    return scalars

  def _fetch(self) -> None:
    """Fetches the pending metrics from the device, and writes the log lines that are due.

    Raises:
      NotFiniteError: a loss is not finite; the message names phase and step.
    """
    fetched = devices.to_host(self._pending)
    self._pending = []
    # A lap with a compilation is not counted.
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
    self._progress.update(number, _displayed(means), speed)

  def _require_finite(self, number: int, what: str, value: float) -> None:
    if not math.isfinite(value):
      raise errors.NotFiniteError(
          f'{self._schedule.phase}: the {what} is {value} at step {number}')

  def close(self) -> None:
    """Closes the metric files and the progress display."""
    self._writer.close()
    self._progress.close()
