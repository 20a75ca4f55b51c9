"""What is set for the whole process: environment variables, XLA's flags, kept programs and memory.

The first part is for before jax is imported; of the rest, from `prepare` on, nothing changes a
number.
"""
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import logging as absl_logging
from etils import epath


def set_environment(config: Mapping[str, Any]) -> None:
  """What has to be set before jax and TensorFlow are imported."""
  _silence_orbax()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  set_xla_flags(bool(config.get('deterministic')))


def set_xla_flags(deterministic: bool) -> None:
  """Adds to XLA_FLAGS what kdih wants, unless it is set there; before jax is imported."""
  wanted = ['--xla_gpu_deterministic_ops=true'] if deterministic else []
  # A CPU's matrix products alone are given to YNNPACK. By XLA's default convolutions are too, which
  # makes a step a quarter slower. A flag that jaxlib does not know ends the process, or one that
  # libtpu, which reads them too, does not know.
  jaxlib = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
  if (0, 10) <= jaxlib < (0, 13) and importlib.util.find_spec('libtpu') is None:
    wanted.append('--xla_cpu_experimental_ynn_fusion_type=individual_dot')
  given = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.partition('=')[0] for flag in given}
  os.environ['XLA_FLAGS'] = ' '.join(
      [*given, *(flag for flag in wanted if flag.partition('=')[0] not in names)])


def _silence_orbax() -> None:
  """Orbax logs at length the errors that it raises; and of several writes that fail it raises one,
  and the others end in asyncio, or report to an event loop that has been closed."""
  def report(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      sys.__unraisablehook__(unraisable)

  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  sys.unraisablehook = report


def prepare(compilation_cache: str, freed_memory: bool) -> None:
  """Keeps compiled programs and, where it is asked for, freed memory; see `config.compute`."""
  keep_compiled(compilation_cache)
  if freed_memory:
    keep_freed_memory()


def keep_compiled(folder: str = '') -> None:
  """Keeps compiled programs in `folder` ('' is the user's cache), for the next start.

  Where JAX has been given a folder of its own (JAX_COMPILATION_CACHE_DIR), that one is kept.
  """
  import jax  # After the flags are set.

  if folder or jax.config.values['jax_compilation_cache_dir'] is None:
    path = epath.Path(folder or '~/.cache/kdih/compiled').expanduser()
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def keep_freed_memory() -> None:
  """Has glibc keep the memory that is freed, for the next step, on a CPU.

  XLA allocates what a step needs at each call, in pieces so large that glibc gives them back to the
  system at once; the page faults of taking them again are a fifth of a step. Elsewhere than on
  glibc nothing is done.
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
