"""What made a result: the command, the code, the versions, the machine."""
import functools
import importlib.metadata
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import jax

import kdih

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml-collections', 'clu', 'numpy')


def collect() -> dict[str, Any]:
  """Returns what made it: the command, the code, the machine."""
  return {
      'command': _command(),
      'versions': {'kdih': kdih.__version__, 'python': sys.version.split()[0],
                   **versions(_PACKAGES)},
      'devices': [str(device.device_kind) for device in jax.devices()],
      'platform': jax.default_backend(),
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'git_commit': _git_commit(),
  }


def _command() -> str:
  program = pathlib.Path(sys.argv[0]).absolute()
  package = pathlib.Path(kdih.__file__).parent
  if not program.is_relative_to(package):  # A notebook, or a program of the user's own.
    return shlex.join(sys.argv)
  names = program.relative_to(package.parent).with_suffix('').parts
  module = '.'.join(name for name in names if name != '__main__')
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


@functools.cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
  """Returns the version of each package, or 'not installed'."""
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'not installed'
  return found


@functools.cache
def _git_commit() -> str:
  command = ['git', '-C', str(pathlib.Path(__file__).parent), 'describe', '--always', '--dirty',
             '--abbrev=40', '--exclude=*']
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
