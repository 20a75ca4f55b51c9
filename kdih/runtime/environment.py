"""Settings of the whole process: environment variables, XLA flags, compilation cache, memory.

The first part must run before jax is imported. The second part, from `prepare` on, changes no
number.
"""
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import logging as absl_logging
from etils import epath

logger = logging.getLogger(__name__)


def set_environment(config: Mapping[str, Any]) -> None:
  """Sets the variables that jax and TensorFlow read when they are imported."""
  _silence_orbax()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  set_xla_flags(bool(config.get('deterministic')))


def set_xla_flags(deterministic: bool) -> None:
  """Adds kdih's flags to XLA_FLAGS, except those that the user has set; before jax is imported."""
  wanted = ['--xla_gpu_deterministic_ops=true'] if deterministic else []
  # On a CPU only matrix products use YNNPACK. By default convolutions use it, too, which makes a
  # step a quarter slower. The process ends if jaxlib, or libtpu, does not know a flag.
  jaxlib = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
  if (0, 10) <= jaxlib < (0, 13) and importlib.util.find_spec('libtpu') is None:
    wanted.append('--xla_cpu_experimental_ynn_fusion_type=individual_dot')
  given = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.partition('=')[0] for flag in given}
  os.environ['XLA_FLAGS'] = ' '.join(
      [*given, *(flag for flag in wanted if flag.partition('=')[0] not in names)])


def _silence_orbax() -> None:
  """Hides orbax's log of errors that it also raises.

  If several writes fail, orbax raises one error, and asyncio logs the others or reports them to an
  event loop that has been closed.
  """
  def report(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      sys.__unraisablehook__(unraisable)

  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  sys.unraisablehook = report


def prepare(compilation_cache: str, freed_memory: bool) -> None:
  """Keeps compiled programs and, if `freed_memory`, freed memory; see `config.compute`."""
  log_compilations()
  keep_compiled(compilation_cache)
  if freed_memory:
    keep_freed_memory()


def keep_compiled(folder: str = '') -> None:
  """Keeps compiled programs in `folder` for the next start; '' is a folder in the user's cache.

  With `folder=''`, a folder from JAX_COMPILATION_CACHE_DIR is kept.
  """
  import jax  # After the flags are set.

  if folder or jax.config.values['jax_compilation_cache_dir'] is None:
    path = epath.Path(folder or '~/.cache/kdih/compiled').expanduser()
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@functools.cache  # JAX would call a listener that is registered twice for each compilation twice.
def log_compilations() -> None:
  """Logs every compilation of over a second, as a detail."""
  import jax  # After the flags are set.

  def listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith('backend_compile_duration') and duration_secs > 1:
      logger.debug(f'compiled a program in {duration_secs:.1f} s')

  jax.monitoring.register_event_duration_secs_listener(listen)


def keep_freed_memory() -> None:
  """Makes glibc keep freed memory for the next step, on a CPU; does nothing without glibc.

  XLA allocates the arrays of a step at each call. They are large, and glibc returns them to the
  system at once; the page faults of the next allocation take a fifth of a step.
  """
  if sys.platform != 'linux':  # Not every system can open the running program as a library.
    return
  import jax  # After the flags are set.

  libc = ctypes.CDLL(None)
  if jax.default_backend() == 'cpu' and hasattr(libc, 'mallopt'):
    # Parameters of glibc's mallopt, from malloc.h.
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)
