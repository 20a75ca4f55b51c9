"""Several processes that run as one: how a program joins and leaves them.

Every process has some of the devices. All processes run the same command on the same workdir and
the same steps; each reads the part of a batch for its own devices.
"""
import glob
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING

from kdih import errors

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)


def join(fields: 'ml_collections.ConfigDict') -> None:
  """Joins the processes of `config.distributed`, of a Slurm job, or of a TPU slice, if any.

  A program calls this before jax computes anything.

  Raises:
    ConfigError: the settings are incomplete, or the other processes do not answer.
  """
  import jax  # Takes a second, and this module must be light.

  if fields.coordinator:
    _check(fields)
    arguments = dict(coordinator_address=fields.coordinator, num_processes=fields.num_processes,
                     process_id=fields.process_id)
  elif fields.detect and _in_cluster():
    arguments = {}
  else:
    return
  # If the other processes do not come, JAX itself ends this one, with a stack trace.
  logger.info(f'distributed: waiting up to {fields.timeout} s for the other processes'
              + (f' at {fields.coordinator}' if fields.coordinator else ''))
  try:
    jax.distributed.initialize(
        **arguments, initialization_timeout=fields.timeout, heartbeat_timeout_seconds=60)
  except (RuntimeError, ValueError) as error:
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
    return int(os.environ.get('SLURM_NTASKS', 1)) > 1
  on_tpu = 'cpu' not in os.environ.get('JAX_PLATFORMS', '') and bool(
      glob.glob('/dev/accel*') or glob.glob('/dev/vfio/*'))
  return on_tpu and importlib.util.find_spec('libtpu') is not None


def joined() -> bool:
  """Returns whether this process is one of several."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
  """Returns whether this is the process that writes files and logs."""
  return not joined() or sys.modules['jax'].process_index() == 0


def lost(error: Exception) -> bool:
  """Returns whether an error means that another process has ended."""
  return joined() and isinstance(error, sys.modules['jax'].errors.JaxRuntimeError)


def leave(code: int) -> None:
  """Ends this process at once if other processes would wait for it, for minutes."""
  if joined():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
