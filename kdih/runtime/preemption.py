"""Preemption: SIGTERM ends a run after the current step, with a checkpoint.

Cloud VMs, TPU VMs and Slurm send SIGTERM some seconds before they stop a process.
"""
import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

from jax.experimental import multihost_utils

from kdih import errors
from kdih.runtime import devices, processes, surroundings

_requested = threading.Event()
_training = threading.Event()
_calls = itertools.count()  # Calls of `reached`, the same number in every process.


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Turns SIGTERM into a PreemptedError; inside `training` it waits for the next step or the end.

  So is any error after the signal: a library may have raised it in place of that one, or have
  swallowed that one; then the next signal raises it again. The handler stays;
  `surroundings.restored` removes it.

  Outside of the main thread, where Python handles no signals, it does nothing. If several processes
  run as one, JAX handles the signal in all of them instead.
  """
  _requested.clear()
  if surroundings.in_main_thread() and not processes.joined():
    signal.signal(signal.SIGTERM, _request)
  with _preferred():
    yield


@contextlib.contextmanager
def training() -> Iterator[None]:
  """Delays the signal inside the context until `reached`, to have time for a checkpoint."""
  _training.set()
  try:
    with _preferred():
      yield
  finally:
    _training.clear()
  if _is_requested():
    raise _error()


def reached() -> bool:
  """Returns whether to stop now; the same in all processes. Call it after each compiled step."""
  if devices.num_processes() > 1:
    # JAX lets all processes stop at the same number, the next one that none has passed.
    return multihost_utils.reached_preemption_sync_point(next(_calls))
  return _is_requested()


def _request(*_) -> None:
  _requested.set()
  if not _training.is_set():
    raise _error()


def _is_requested() -> bool:
  """Returns whether the signal came, in a command that still runs."""
  return _requested.is_set() and signal.getsignal(signal.SIGTERM) is _request


@contextlib.contextmanager
def _preferred() -> Iterator[None]:
  """Raises a PreemptedError in place of another error, if the signal came before."""
  try:
    yield
  except Exception as error:
    if _is_requested():
      raise _error() from error
    raise


def _error() -> errors.PreemptedError:
  return errors.PreemptedError('stopped by SIGTERM; run the same command again to resume')
