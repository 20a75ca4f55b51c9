"""What produced a result: the command, the code, the library versions, the machine."""
import contextlib
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

import kdih
from kdih import errors

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml-collections', 'clu', 'numpy', 'torch')


def collect() -> dict[str, Any]:
  """Returns the provenance of a result that this process produces, for JSON."""
  return {
      'command': _command(),
      'versions': {'kdih': kdih.__version__, 'python': platform.python_version(), **_versions()},
      'devices': [str(device.device_kind) for device in jax.devices()],
      'platform': jax.default_backend(),
      'processor': _processor(),
      'cpu_count': os.cpu_count(),
      'cpus_usable': (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
                      else os.cpu_count()),
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'git_commit': _git_commit(pathlib.Path(kdih.__file__).parent),
  }


def _command() -> str:
  program = pathlib.Path(sys.argv[0]).absolute()
  package = pathlib.Path(kdih.__file__).parent
  if not program.is_relative_to(package):  # A notebook, or a program of the user's own.
    return errors.printable(shlex.join(sys.argv))
  names = program.relative_to(package.parent).with_suffix('').parts
  module = '.'.join(name for name in names if name != '__main__')
  return errors.printable(shlex.join(['python', '-m', module, *sys.argv[1:]]))


@functools.cache
def _versions() -> dict[str, str]:
  """Returns the version of each package that is installed."""
  found = {}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


@functools.cache
def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text(encoding='utf-8').split('\n') if info.exists() else []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor()


@functools.cache
def _git_commit(package: pathlib.Path) -> str:
  """Returns the commit of a package; '-dirty' at its end marks uncommitted changes or new files."""
  try:
    commit = _git(package, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
    if not commit.endswith('-dirty') and _git(package, 'status', '--porcelain', '--', '.'):
      commit += '-dirty'  # `git describe` ignores files that are not tracked.
    return commit
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def _git(folder: pathlib.Path, *arguments: str) -> str:
  command = ['git', '-C', str(folder), *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
