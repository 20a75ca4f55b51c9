"""Several processes that run as one: how a program joins and leaves them.

Every process has some of the devices. All processes run the same command on the same workdir and
the same steps; each reads the part of a batch for its own devices.
"""
import glob
import importlib.util
import logging
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

from kdih import errors

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)

_connecting = threading.Event()  # JAX waits for the other processes, or has waited in vain.


def join(fields: 'ml_collections.ConfigDict') -> None:
  """Joins the processes of `config.distributed`, of a Slurm job, or of a TPU slice, if any.

  A program calls this before jax computes anything.

  Raises:
    ConfigError: the settings are incomplete, or the other processes do not answer.
  """
  if fields.coordinator:
    _check(fields)
    arguments = dict(coordinator_address=fields.coordinator, num_processes=fields.num_processes,
                     process_id=fields.process_id)
  elif fields.detect and _in_cluster():
    arguments = {}
  elif fields.num_processes > 1 or fields.process_id:
    raise errors.ConfigError(
        '--coordinator: is not set, and the processes cannot find each other; set it to HOST:PORT '
        'of process 0, or remove --num_processes and --process_id to run this process alone')
  else:
    return
  logger.info(f'distributed: waiting up to {fields.timeout} s for the other processes'
              + (f' at {fields.coordinator}' if fields.coordinator else ''))
  _initialize(fields.timeout, arguments)


def _initialize(timeout: int, arguments: dict[str, Any]) -> None:
  """Connects JAX to the other processes, or raises ConfigError after `timeout` seconds.

  JAX itself ends a process for which the others do not come, with a stack trace. It therefore waits
  longer, in another thread. A thread that still waits ends with the process; see `leave`.
  """
  import jax

  ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

  def connect() -> None:
    try:
      jax.distributed.initialize(
          **arguments, initialization_timeout=timeout + 300, heartbeat_timeout_seconds=60)
    except Exception as error:  # Each way to detect the processes raises errors of its own.
      ended.put(error)
    else:
      ended.put(None)

  _connecting.set()
  threading.Thread(target=connect, daemon=True).start()
  try:
    error = ended.get(timeout=timeout)
  except queue.Empty:
    raise errors.ConfigError(
        f'config.distributed.timeout: the other processes did not come within {timeout} s; start '
        'all of them, or run this one alone: --config.distributed.detect=False and no '
        '--coordinator') from None
  _connecting.clear()
  if error:
    raise errors.ConfigError(
        f'config.distributed: the processes did not find each other ({errors.first_line(error)}); '
        'start all of them with the --coordinator=HOST:PORT of process 0') from error


def _check(fields: 'ml_collections.ConfigDict') -> None:
  host, _, port = fields.coordinator.rpartition(':')
  if not (host and port.isascii() and port.isdecimal()):
    raise errors.ConfigError(f'--coordinator: {fields.coordinator!r} is not HOST:PORT, such as '
                             '10.0.0.2:9876')
  if fields.process_id >= fields.num_processes:
    raise errors.ConfigError(f'--process_id: is {fields.process_id}; each process needs its own, '
                             f'from 0 to {fields.num_processes - 1}')


def _in_cluster() -> bool:
  """Returns whether JAX can find the other processes by itself."""
  if 'SLURM_STEP_NODELIST' in os.environ:
    # A shell of an allocation is one task, however many the allocation has.
    setting = next((name for name in ('SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS')
                    if name in os.environ), None)
    tasks = os.environ[setting] if setting else '1'
    if not (tasks.isascii() and tasks.isdecimal()):
      raise errors.ConfigError(
          f'{setting}: {errors.in_line(tasks)!r} is not the number of tasks of a Slurm job; unset '
          'it, or set --config.distributed.detect=False to ignore the job')
    return int(tasks) > 1
  on_tpu = 'cpu' not in os.environ.get('JAX_PLATFORMS', '') and bool(
      glob.glob('/dev/accel*') or glob.glob('/dev/vfio/*'))
  return on_tpu and importlib.util.find_spec('libtpu') is not None


def joined() -> bool:
  """Returns whether this process is one of several."""
  jax = sys.modules.get('jax')
  return jax is not None and not _connecting.is_set() and jax.distributed.is_initialized()


def is_first() -> bool:
  """Returns whether this is the process that writes files and logs."""
  return not joined() or sys.modules['jax'].process_index() == 0


def lost(error: Exception) -> bool:
  """Returns whether an error means that another process has ended."""
  return joined() and isinstance(error, sys.modules['jax'].errors.JaxRuntimeError)


def leave(code: int) -> None:
  """Ends this process at once if other processes would wait for it, for minutes."""
  if joined() or _connecting.is_set():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
