"""The log: what kdih reports while it works, on standard error, by the library `logging`.

Every module logs to the logger of its own name, below 'kdih'.
"""
import logging
import sys

import tqdm

from kdih.runtime import processes

_ROOT = logging.getLogger('kdih')
FLAGS = {'-v': logging.DEBUG, '--verbose': logging.DEBUG,
         '-q': logging.WARNING, '--quiet': logging.WARNING}
USAGE = """  -v, --verbose  Log details too, and print the traceback of an error.
  -q, --quiet  Log only warnings."""


def configure(level: int | None = None) -> None:
  """Shows records of `level` and above.

  None keeps the level, which is INFO at first. Where the logger 'kdih' has a handler already, that
  one stays the only one.
  """
  _ROOT.setLevel(level or _ROOT.level or logging.INFO)
  if not _ROOT.handlers:
    _ROOT.addHandler(_Terminal())
    _ROOT.propagate = False  # Other libraries give the root logger handlers of their own.


class _Terminal(logging.Handler):
  """Writes records above the progress bar, if there is one; of several processes, the first's."""

  def __init__(self):
    super().__init__()
    self.setFormatter(logging.Formatter('%(message)s'))

  def emit(self, record: logging.LogRecord) -> None:
    if not processes.is_first():
      return
    # Looked up for each record, for notebooks replace it.
    tqdm.tqdm.write(self.format(record), file=sys.stderr)
    sys.stderr.flush()
