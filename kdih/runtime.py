"""What is set for the whole process before anything is computed; it changes no number."""
import ctypes

import jax
from etils import epath

_COMPILED = '~/.cache/kdih/compiled'
# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def prepare(compilation_cache: str, freed_memory: bool) -> None:
  """Keeps compiled programs and, where it is asked for, freed memory; see `config.compute`."""
  keep_compiled(compilation_cache)
  if freed_memory:
    keep_freed_memory()


def keep_compiled(folder: str = '') -> None:
  """Keeps compiled programs in `folder` ('' is the user's cache), for the next start.

  Where JAX has been given a folder of its own (JAX_COMPILATION_CACHE_DIR), that one is kept.
  """
  if folder or jax.config.values['jax_compilation_cache_dir'] is None:
    path = epath.Path(folder or _COMPILED).expanduser()
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def keep_freed_memory() -> None:
  """Has glibc keep the memory that is freed, for the next step, on a CPU.

  XLA allocates what a step needs at each call, in pieces so large that glibc gives them back to the
  system at once; the page faults of taking them again are a fifth of a step. Elsewhere than on
  glibc nothing is done.
  """
  libc = ctypes.CDLL(None)
  if jax.default_backend() == 'cpu' and hasattr(libc, 'mallopt'):
    libc.mallopt(_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_TOP_PAD, 2**26)
