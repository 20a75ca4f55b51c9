"""Machines that are taken away: SIGTERM ends a run at a step, with a checkpoint.

Cloud VMs, TPU VMs and Slurm send that signal some seconds before they stop a process.
"""
import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

from jax.experimental import multihost_utils

from kdih import errors
from kdih.runtime import devices, processes

_asked = threading.Event()
_training = threading.Event()
_times = itertools.count()  # That `reached` was asked, in every process alike.


def listen() -> None:
  """From now on SIGTERM raises PreemptedError, within `training` at its next step or end.

  To be called by a program, in its main thread. Where several processes run as one, JAX listens
  in its place, in all of them.
  """
  _asked.clear()
  if not processes.joined():
    signal.signal(signal.SIGTERM, _take_notice)


def _take_notice(*_) -> None:
  _asked.set()
  if not _training.is_set():
    _leave()


def _leave() -> None:
  raise errors.PreemptedError('asked to stop; the same command goes on where it was')


@contextlib.contextmanager
def training() -> Iterator[None]:
  """Where the signal must wait until `reached` is asked, so that a checkpoint can be written."""
  _training.set()
  try:
    yield
  finally:
    _training.clear()
  if _asked.is_set():
    _leave()


def reached() -> bool:
  """Whether to stop here; the same in all processes. To be asked after each call of a step."""
  if devices.num_processes() > 1:
    # JAX makes the processes meet at the next number after the one they are at.
    return multihost_utils.reached_preemption_sync_point(next(_times))
  return _asked.is_set()
