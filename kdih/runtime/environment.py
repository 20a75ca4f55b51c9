"""Settings of the whole process: environment variables, XLA flags, compilation cache, memory.

The first part must run before jax is imported. The second part, from `prepare` on, changes no
number.
"""
import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from absl import logging as absl_logging
from etils import epath

from kdih import errors
from kdih.runtime import files

logger = logging.getLogger(__name__)

# The variables that `set_environment` may set.
VARIABLES = ('HOME', 'TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS', 'XLA_FLAGS')

_MAX_FLAGS = 2**16  # Characters of a file of flags.
_PATIENCE = 60  # Seconds for another process to read flags; it takes a fifth of one.

_jax_before: dict[str, Any] = {}  # The settings of JAX that kdih has changed.


def set_environment(config: Mapping[str, Any]) -> None:
  """Sets the variables that jax and TensorFlow read when they are imported.

  Raises:
    ConfigError: a library does not accept an environment variable, or there is no home folder.
  """
  _silence_orbax()
  provide_home()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  set_xla_flags(bool(config.get('deterministic')))
  import_library('jax')
  import_library('matplotlib')


def import_library(name: str) -> None:
  """Imports a library that reads environment variables, such as JAX_ENABLE_X64 or MPLBACKEND.

  Raises:
    ConfigError: it does not accept the value of a variable.
  """
  try:
    importlib.import_module(name)
  except ValueError as error:
    raise errors.ConfigError(f'{name}: cannot be imported ({errors.first_line(error)}); correct '
                             'the environment variables that it reads') from error


def provide_home() -> None:
  """Sets HOME, if there is no home folder, to a folder that every later start finds again.

  Else `~` would be a folder of this name, for kdih as for the libraries that it uses.

  Raises:
    ConfigError: there is no home folder, and this folder belongs to somebody else.
  """
  if sys.platform == 'win32' or os.path.expanduser('~') != '~':
    return
  user = os.getuid()
  home = pathlib.Path(tempfile.gettempdir(), f'kdih-home-{user}')
  home.mkdir(mode=0o700, exist_ok=True)
  if home.is_symlink() or home.stat().st_uid != user:
    raise errors.ConfigError(f'HOME: is not set, and {home} belongs to another user; set HOME')
  logger.warning(f'there is no home folder: data sets and compiled programs are kept in {home}; '
                 'set HOME to keep them elsewhere')
  os.environ['HOME'] = str(home)


def set_xla_flags(deterministic: bool) -> None:
  """Adds kdih's flags to XLA_FLAGS, except those that the user has set; before jax is imported.

  Raises:
    ConfigError: XLA does not accept the user's flags.
  """
  wanted = ['--xla_gpu_deterministic_ops=true'] if deterministic else []
  # On a CPU only matrix products use YNNPACK. By default convolutions use it, too, which makes a
  # step a quarter slower. The process ends if jaxlib, or libtpu, does not know a flag.
  jaxlib = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:2])
  if (0, 10) <= jaxlib < (0, 13) and importlib.util.find_spec('libtpu') is None:
    wanted.append('--xla_cpu_experimental_ynn_fusion_type=individual_dot')
  given = _given_flags()
  names = {flag.partition('=')[0] for flag in given.split()}
  os.environ['XLA_FLAGS'] = ' '.join(
      [given, *(flag for flag in wanted if flag.partition('=')[0] not in names)]).strip()


def _given_flags() -> str:
  """Returns the flags of XLA_FLAGS; if it names a file, as XLA allows, the flags in this file.

  Raises:
    ConfigError: they are no flags, or XLA does not accept them.
  """
  given = os.environ.get('XLA_FLAGS', '').strip()
  if given and not given.startswith('-'):
    given = _flags_in(given)
  if given:
    _check_flags(given)
  return given


def _flags_in(path: str) -> str:
  """Returns the flags in a file.

  Raises:
    ConfigError: it holds none. XLA takes what does not begin with a dash for the path of a file.
  """
  with contextlib.suppress(OSError, UnicodeDecodeError):
    if files.is_file(pathlib.Path(path)):
      with open(path, encoding='utf-8') as file:
        flags = file.read(_MAX_FLAGS + 1).strip()
      if len(flags) <= _MAX_FLAGS and flags[:1] in ('', '-'):
        return flags
  raise errors.ConfigError(
      f'XLA_FLAGS: {errors.in_line(path)!r} is neither a flag, which begins with --, nor a file of '
      'flags that can be read; correct or unset it')


@functools.cache
def _check_flags(flags: str) -> None:
  """Raises ConfigError if XLA does not accept the flags.

  XLA ends a process in which it reads flags that it does not know. Another process, which takes a
  fifth of a second, therefore reads them first.
  """
  try:
    read = subprocess.run(
        [sys.executable, '-c', 'from jaxlib import xla_client; xla_client.CompileOptions()'],
        env={**os.environ, 'XLA_FLAGS': flags, 'TF_CPP_MIN_LOG_LEVEL': '0'}, capture_output=True,
        text=True, errors='replace', check=False, timeout=_PATIENCE)
  except subprocess.TimeoutExpired:  # Such as on a file system that is slow today.
    logger.warning(f'XLA_FLAGS: not checked, because another process has not read them in '
                   f'{_PATIENCE} seconds')
    return
  if not read.returncode:
    return
  reason = read.stderr.strip().partition('\n')[0].rpartition('] ')[2]
  raise errors.ConfigError(f'XLA_FLAGS: XLA does not accept {errors.in_line(flags)!r} '
                           f'({errors.in_line(reason)}); correct or unset it')


def _silence_orbax() -> None:
  """Hides orbax's log of errors that it also raises.

  If several writes fail, orbax raises one error, and asyncio logs the others or reports them to an
  event loop that has been closed. A loop that finds no file for its socket lacks it when it goes.
  """
  def report(unraisable: Any) -> None:
    text = str(unraisable.exc_value)
    if text != 'Event loop is closed' and "has no attribute '_ssock'" not in text:
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

  Raises:
    ConfigError: as `compiled_folder`.
  """
  import jax  # After the flags are set.

  path = compiled_folder(folder)
  if folder or jax.config.values['jax_compilation_cache_dir'] is None:
    _set_jax({'jax_compilation_cache_dir': str(path),
              'jax_persistent_cache_min_compile_time_secs': 0.5})


def compiled_folder(folder: str) -> epath.Path:
  """Returns the folder in which programs are kept; see `keep_compiled`.

  Raises:
    ConfigError: it cannot be written to. A cache that the user did not ask for may fail to write.
  """
  for setting, path in (('config.compute.compilation_cache', folder),
                        ('JAX_COMPILATION_CACHE_DIR',
                         os.environ.get('JAX_COMPILATION_CACHE_DIR', ''))):
    if path:
      found = files.given(setting, path)
      files.check_writable(setting, found)
      return found
  return files.given('config.compute.compilation_cache', '~/.cache/kdih/compiled')


def restore_jax() -> None:
  """Restores the settings of JAX that `keep_compiled` has changed."""
  if _jax_before:
    _set_jax(_jax_before)
    _jax_before.clear()


def _set_jax(settings: Mapping[str, Any]) -> None:
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  for name, value in settings.items():
    _jax_before.setdefault(name, jax.config.values[name])
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # JAX opens the folder once, at the first compilation.


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
  if platform.libc_ver()[0] != 'glibc':
    return
  import jax  # After the flags are set.

  libc = ctypes.CDLL(None)
  if jax.default_backend() == 'cpu':
    # Parameters of glibc's mallopt, from malloc.h.
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)
