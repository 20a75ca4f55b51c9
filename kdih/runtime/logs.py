"""The log: what kdih reports while it works, on standard error, by the library `logging`.

Every module logs to the logger of its own name, below 'kdih': `warning` for what a user should act
on, `info` for the progress, `debug` for details.
"""
import logging
import sys

import tqdm

from kdih import errors
from kdih.runtime import processes

_KDIH = logging.getLogger('kdih')
FLAGS = {'-v': logging.DEBUG, '--verbose': logging.DEBUG,
         '-q': logging.WARNING, '--quiet': logging.WARNING}
USAGE = """\
  -v, --verbose  Log details, too: settings, checkpoints, caches, compilations, tracebacks.
  -q, --quiet  Log only warnings, and show no progress."""


def configure(level: int | None = None) -> None:
  """Shows log records of `level` and above on standard error.

  A handler that the user has added to the logger 'kdih' is kept, and then no other is added.

  Args:
    level: None keeps the level of the logger 'kdih', or sets INFO if it has none.
  """
  _KDIH.setLevel(level or _KDIH.level or logging.INFO)
  if not _KDIH.handlers:
    _KDIH.addHandler(_Terminal())
    _KDIH.propagate = False  # Other libraries give the root logger handlers of their own.


class _Terminal(logging.Handler):
  """Writes log records above the progress bar, if there is one; only the first process writes."""

  def __init__(self):
    super().__init__()
    self.setFormatter(logging.Formatter('%(message)s'))

  def emit(self, record: logging.LogRecord) -> None:
    if not processes.is_first():
      return
    # `sys.stderr` is looked up for each record because notebooks and tests replace it.
    text = '\n'.join(map(errors.printable, self.format(record).split('\n')))
    tqdm.tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
