"""Processes that begin with everything imported: copies of this one, which has computed nothing.

jax, TensorFlow and the packages around them take seconds to import. A parent imports them once and
forks for each command. This is sound as long as the parent has no backend of jax and no threads of
its own, which `fork` checks. The parent therefore neither computes with jax nor reads checkpoints:
`call` does it in a child.
"""
import dataclasses
import gc
import json
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

TIMEOUT = 150  # Seconds after which a process hangs.


def import_everything(compiled: str) -> None:
  """Imports what the commands import, so that children need not; call it before the first fork.

  Args:
    compiled: the folder for compiled programs, which all children share.
  """
  import jax
  jax.config.update('jax_compilation_cache_dir', compiled)
  import clu.metric_writers  # noqa: F401
  import matplotlib.pyplot  # noqa: F401
  import tensorboard.backend.event_processing.event_file_loader  # noqa: F401

  import kdih.main
  import kdih.phases.pipeline
  import kdih.report.__main__
  import kdih.report.comparison_plots
  import kdih.report.page
  import kdih.report.run_report
  import kdih.sweep.__main__
  import kdih.sweep.run
  kdih.sweep.run._PAUSE = 0.05  # Nobody waits for processes that take seconds.
  gc.collect()
  gc.freeze()  # A child that collects would copy the pages of all that is imported.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
  """How a process has ended.

  Attributes:
    code: the exit code; negative if a signal ended it.
    said: its standard output and standard error.
    notes: the lines that the function in the process has noted.
    seconds: how long it took.
    hung: whether it was ended because it took longer than `TIMEOUT`.
  """

  code: int
  said: str
  notes: tuple[str, ...]
  seconds: float
  hung: bool = False


Note = Callable[[str], Any]
Body = Callable[[Note], int]  # What a process does; returns the exit code.


class Process:
  """A child that runs `body`; its output and its notes come by pipes."""

  def __init__(self, body: Body, kill_after: float | None):
    self.begun, self.kill_after, self.hung = time.monotonic(), kill_after, False
    said, noted = os.pipe(), os.pipe()
    self.pid = fork()
    if not self.pid:
      os.close(said[0])
      os.close(noted[0])
      _become(body, said[1], noted[1])
    os.close(said[1])
    os.close(noted[1])
    self.texts = {said[0]: b'', noted[0]: b''}
    self._said, self._noted = said[0], noted[0]

  def read(self, pipe: int) -> bool:
    """Reads from one of the pipes; returns whether it goes on."""
    text = os.read(pipe, 2**16)
    self.texts[pipe] += text
    if not text:
      os.close(pipe)
    return bool(text)

  def keep_time(self) -> None:
    """Kills the process if its time has come."""
    seconds = time.monotonic() - self.begun
    if self.kill_after is not None and seconds >= self.kill_after:
      os.kill(self.pid, signal.SIGKILL)
      self.kill_after = None
    if seconds > TIMEOUT:
      self.hung = True
      os.kill(self.pid, signal.SIGKILL)

  def ended(self) -> Ended:
    """Returns how it has ended, once both pipes have."""
    _, status = os.waitpid(self.pid, 0)
    said, noted = (self.texts[pipe].decode(errors='replace') for pipe in (self._said, self._noted))
    return Ended(
        code=os.waitstatus_to_exitcode(status), said=said, notes=tuple(noted.splitlines()),
        seconds=time.monotonic() - self.begun, hung=self.hung)


def fork() -> int:
  """Forks, as `os.fork`, if that is sound."""
  from jax._src import xla_bridge
  assert not xla_bridge._backends, 'jax has a backend: its threads are lost in a child'
  assert threading.active_count() == 1, 'threads are lost in a child'
  return os.fork()


def run(*bodies: Body, kill_after: tuple[float | None, ...] = ()) -> list[Ended]:
  """Runs processes at the same time, and returns how each has ended.

  Args:
    *bodies: what each process does.
    kill_after: for each process the seconds after which it is killed, or None; () kills none.
  """
  processes = [Process(body, seconds) for body, seconds in zip(
      bodies, kill_after or (None,) * len(bodies), strict=True)]
  with selectors.DefaultSelector() as selector:
    for process in processes:
      for pipe in process.texts:
        selector.register(pipe, selectors.EVENT_READ, process)
    while selector.get_map():
      for key, _ in selector.select(0.005):
        if not key.data.read(key.fd):
          selector.unregister(key.fd)
      for process in {key.data.pid: key.data for key in selector.get_map().values()}.values():
        process.keep_time()
  return [process.ended() for process in processes]


def call(function: Callable[..., Any], *args: Any) -> Any:
  """Returns what a function returns, which runs in a child; JSON must be able to hold it."""
  def body(note: Note) -> int:
    note(json.dumps(function(*args)))
    return 0

  ended, = run(body)
  if ended.code:
    raise RuntimeError(f'{function.__name__} failed: {ended.said}')
  return json.loads(ended.notes[0])


def _become(body: Body, said: int, noted: int) -> None:
  """Turns this process, a child, into one that runs `body`; does not return."""
  code = 1
  try:
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(said)
    sys.stdout = open(1, 'w', buffering=1, encoding='utf-8', closefd=False)  # noqa: SIM115
    sys.stderr = open(2, 'w', buffering=1, encoding='utf-8', closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's `&` ignores it.
    code = body(lambda text: os.write(noted, f'{text}\n'.encode()))
  except BaseException:  # As the interpreter does.
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
