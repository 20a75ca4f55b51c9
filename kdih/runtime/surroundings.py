"""What a command finds in its process, and leaves as it was: streams, signals, variables, logs."""
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO, cast

from absl import logging as absl_logging

from kdih.runtime import environment

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOGGERS = ('root', 'kdih', 'absl', 'asyncio')


@contextlib.contextmanager
def restored() -> Iterator[None]:
  """Restores what a command changes in its process, whether it returns or raises.

  A notebook or a test that calls the `main` of a command keeps its standard streams, its handlers
  of SIGINT and SIGTERM, the environment variables that kdih sets, `sys.unraisablehook`, its loggers
  and JAX's settings.

  What stays: imported libraries with all that they set; XLA's flags and platforms, which JAX reads
  when it starts; the memory that glibc keeps (`environment.keep_freed_memory`); other processes
  that this one has joined. Closed standard streams of the system stay open, on the null device.
  """
  hook, verbosity = sys.unraisablehook, absl_logging.get_verbosity()
  handlers = {number: signal.getsignal(number) for number in _SIGNALS}
  variables = {name: os.environ.get(name) for name in environment.VARIABLES}
  loggers = [(logger, logger.level, logger.handlers[:], logger.propagate)
             for logger in map(logging.getLogger, _LOGGERS)]
  try:
    with _usable_streams():
      yield
  finally:
    for name, value in variables.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
    for number, handler in handlers.items():
      if handler is not None and signal.getsignal(number) is not handler:
        signal.signal(number, handler)
    absl_logging.set_verbosity(verbosity)
    for logger, level, found, propagate in loggers:
      logger.setLevel(level)
      logger.handlers, logger.propagate = found, propagate
    sys.unraisablehook = hook
    environment.restore_jax()


def in_main_thread() -> bool:
  """Returns whether this is the main thread, in which alone Python handles signals."""
  return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _usable_streams() -> Iterator[None]:
  """Lets everything be printed, whatever the streams are connected to; see `_Stream`."""
  for number in range(3):  # Else the next file that is opened would get what others print.
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  with (open(os.devnull, 'w', encoding='utf-8') as null,
        contextlib.redirect_stdout(cast(TextIO, _Stream(sys.stdout or null, BrokenPipeError))),
        contextlib.redirect_stderr(cast(TextIO, _Stream(sys.stderr or null, OSError)))):
    yield


class _Stream:
  """A text stream that can print every character, and that need not have a reader any more.

  A character that the encoding lacks is printed as its code, such as \\u2192.

  Args:
    stream: to print to.
    lost: errors that mean that nobody reads: what is printed from then on is lost.
  """

  def __init__(self, stream: TextIO, lost: type[OSError]):
    self._stream, self._lost = stream, lost

  def write(self, text: str) -> int:
    """Prints a text and returns its length."""
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    with self._ended():
      self._stream.write(text.encode(encoding, 'backslashreplace').decode(encoding))
    return len(text)

  def flush(self) -> None:
    """Prints what has been written."""
    with self._ended():
      self._stream.flush()

  @contextlib.contextmanager
  def _ended(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._discard()
      if not isinstance(error, self._lost):
        raise

  def _discard(self) -> None:
    """Connects the stream to the null device; what it holds would fail again at the exit."""
    with (contextlib.suppress(OSError, AttributeError),  # It may have no file.
          open(os.devnull, 'wb') as null):
      os.dup2(null.fileno(), self._stream.fileno())

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)
