"""What the programs share: help, the environment, one line for an error, the exit code."""
import os
import sys
from collections.abc import Callable

import ml_collections
from absl import logging

from kdih import errors

_HELP = {'--help', '-h', '-help', '--helpfull'}
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def main(argv: list[str], help_text: str, body: Callable[[list[str]], int]) -> int:
  """Runs `body(argv)` and returns the exit code; prints `help_text` where help is asked for.

  An error that the user can mend is printed as one line: exit code 2 for a setting, 1 for a
  failed training, 130 for an interruption.
  """
  if _HELP & set(argv):
    print(help_text)
    return 0
  try:
    return body(argv)
  except errors.ConfigError as error:
    return _fail(2, error)
  except errors.TrainingError as error:
    return _fail(1, error)
  except KeyboardInterrupt:
    return _fail(130, 'interrupted; the same command goes on from the last checkpoint')


def set_environment(config: ml_collections.ConfigDict) -> None:
  """What has to be set before jax and TensorFlow are imported."""
  logging.set_verbosity(logging.ERROR)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  xla_flags = os.environ.get('XLA_FLAGS', '').split()
  if config.deterministic and _DETERMINISTIC not in xla_flags:
    os.environ['XLA_FLAGS'] = ' '.join([*xla_flags, _DETERMINISTIC])


def _fail(code: int, reason: object) -> int:
  print(f'kdih: {" ".join(str(reason).split())}', file=sys.stderr)
  return code
