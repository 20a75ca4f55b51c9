"""How every program runs: help, one line for an error, the exit code."""
import sys
import traceback
from collections.abc import Callable

from kdih import errors
from kdih.runtime import processes

RESUME = 75  # EX_TEMPFAIL of sysexits.h; launch scripts start such a run again.


def main(argv: list[str], help_text: str, body: Callable[[list[str]], int]) -> int:
  """Runs `body(argv)` and returns the exit code; prints `help_text` where help is asked for.

  An error that the user can mend is printed as one line: exit code 2 for a setting, 1 for a
  failed training, `RESUME` where the same command goes on with nothing mended, 130 for an
  interruption.
  """
  if {'--help', '-h', '-help', '--helpfull'} & set(argv):
    print(help_text)
    return 0
  code = _run(argv, body)
  if code:
    processes.leave(code)
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
    if processes.lost(error):
      return _fail(RESUME, f'another process is gone ({errors.first_line(error)}); start all of '
                           'them again, and they go on from the last checkpoint')
    if processes.joined():  # The others wait; they must see this one end.
      traceback.print_exc()
      return 1
    raise


def _fail(code: int, reason: object) -> int:
  print(f'kdih: {" ".join(str(reason).split())}', file=sys.stderr)
  return code
