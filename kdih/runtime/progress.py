"""The progress of a phase: a bar on a terminal, otherwise lines in the log."""
import datetime
import logging
import sys

import tqdm

from kdih.runtime import processes

logger = logging.getLogger(__name__)


class Progress:
  """Shows phase, epoch, loss, accuracy, examples/s and the remaining time, on standard error.

  Args:
    phase: such as 'student/dih'.
    total_steps: of the phase.
    start_step: the number of steps that are already done.
    steps_per_epoch: may be a fraction.
    batch_size: global.
  """

  def __init__(self, *, phase: str, total_steps: int, start_step: int, steps_per_epoch: float,
               batch_size: int):
    self._phase = phase
    self._total = total_steps
    self._steps_per_epoch = steps_per_epoch
    self._batch_size = batch_size
    self._bar = None
    if sys.stderr.isatty() and processes.is_first() and logger.isEnabledFor(logging.INFO):
      self._bar = tqdm.tqdm(total=total_steps, initial=start_step, desc=phase, unit='step',
                            dynamic_ncols=True)

  def update(self, step: int, metrics: dict[str, float], examples_per_second: float) -> None:
    """Shows the state after `step` updates, and the speed unless it is 0, which means unknown."""
    values = ' '.join(f'{name} {value:.4f}' for name, value in metrics.items())
    done = step / self._steps_per_epoch
    total = self._total / self._steps_per_epoch
    epochs = f'epoch {done:.1f}/{total:.1f}'
    text = f'{epochs} {values}'
    if examples_per_second:
      text += f' {examples_per_second:,.0f} examples/s'
    if self._bar:
      self._bar.n = step
      self._bar.set_postfix_str(text)
      return
    if examples_per_second:
      seconds = (self._total - step) * self._batch_size / examples_per_second
      text += f' ETA {datetime.timedelta(seconds=round(seconds))}'
    logger.info(f'{self._phase}: {text}')

  def close(self) -> None:
    """Closes the bar."""
    if self._bar:
      self._bar.close()
