"""What the programs share: help, the environment, one line for an error, the exit code."""
import importlib.metadata
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging as absl_logging

from kdih import distributed, errors

_HELP = {'--help', '-h', '-help', '--helpfull'}
RESUME = 75  # EX_TEMPFAIL of sysexits.h; launch scripts start such a run again.
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
# A CPU's matrix products alone are given to YNNPACK. By XLA's default convolutions are too, which
# makes a step a quarter slower. A flag that jaxlib does not know ends the process, or one that
# libtpu, which reads them too, does not know.
_QUICK = '--xla_cpu_experimental_ynn_fusion_type=individual_dot'
_KNOW_QUICK = ('0.10', '0.13')  # From, and below.


def main(argv: list[str], help_text: str, body: Callable[[list[str]], int]) -> int:
  """Runs `body(argv)` and returns the exit code; prints `help_text` where help is asked for.

  An error that the user can mend is printed as one line: exit code 2 for a setting, 1 for a
  failed training, `RESUME` where the same command goes on with nothing mended, 130 for an
  interruption.
  """
  if _HELP & set(argv):
    print(help_text)
    return 0
  code = _run(argv, body)
  if code:
    distributed.leave(code)
  return code


def _run(argv: list[str], body: Callable[[list[str]], int]) -> int:
  try:
    return body(argv)
  except errors.ConfigError as error:
    return _fail(2, error)
  except errors.TrainingError as error:
    return _fail(1, error)
  except errors.PreemptedError as error:
    return _fail(RESUME, error)
  except OSError as error:  # The data set is readable, and the workdir writable, or was.
    return _fail(1, f'{error}; mend that, and the same command goes on from the last checkpoint')
  except KeyboardInterrupt:
    return _fail(130, 'interrupted; the same command goes on from the last checkpoint')
  except Exception as error:
    if distributed.lost(error):
      return _fail(RESUME, f'another process is gone ({errors.first_line(error)}); start all of '
                           'them again, and they go on from the last checkpoint')
    if distributed.joined():  # The others wait; they must see this one end.
      traceback.print_exc()
      return 1
    raise


def set_environment(config: Mapping[str, Any]) -> None:
  """What has to be set before jax and TensorFlow are imported."""
  _silence_orbax()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  set_xla_flags(bool(config.get('deterministic')))


def set_xla_flags(deterministic: bool) -> None:
  """Adds to XLA_FLAGS what kdih wants, unless it is set there; before jax is imported."""
  given = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.partition('=')[0] for flag in given}
  wanted = [_DETERMINISTIC] if deterministic else []
  if _knows_quick():
    wanted.append(_QUICK)
  os.environ['XLA_FLAGS'] = ' '.join(
      [*given, *(flag for flag in wanted if flag.partition('=')[0] not in names)])


def _knows_quick() -> bool:
  first, end = map(_numbers, _KNOW_QUICK)
  return (first <= _numbers(importlib.metadata.version('jaxlib')) < end
          and importlib.util.find_spec('libtpu') is None)


def _numbers(version: str) -> tuple[int, ...]:
  return tuple(int(part) for part in version.split('.')[:2])


def _silence_orbax() -> None:
  """Orbax logs at length the errors that it raises; and of several writes that fail it raises one,
  and the others end in asyncio, or report to an event loop that has been closed."""
  def report(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      sys.__unraisablehook__(unraisable)

  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  sys.unraisablehook = report


def _fail(code: int, reason: object) -> int:
  print(f'kdih: {" ".join(str(reason).split())}', file=sys.stderr)
  return code
