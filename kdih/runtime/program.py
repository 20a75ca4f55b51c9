"""How every program runs: help, one line for an error, the exit code."""
import logging
import sys
import traceback
from collections.abc import Callable

from kdih import errors
from kdih.runtime import logs, processes

logger = logging.getLogger(__name__)

RESUME = 75  # EX_TEMPFAIL of sysexits.h; launch scripts start such a run again.


def main(argv: list[str], help_text: str, body: Callable[[list[str]], int]) -> int:
  """Runs `body(argv)` and returns the exit code; prints `help_text` where help is asked for.

  An error that the user can mend is printed as one line: exit code 2 for a setting, 1 for a
  failed training, `RESUME` where the same command goes on with nothing mended, 130 for an
  interruption.
  """
  if {'--help', '-h', '-help', '--helpfull'} & set(argv):
    print(f'{help_text}\n{logs.USAGE}')
    return 0
  given = [logs.FLAGS[argument] for argument in argv if argument in logs.FLAGS]
  logs.configure(given[-1] if given else None)
  try:
    code = body([argument for argument in argv if argument not in logs.FLAGS])
  except (Exception, KeyboardInterrupt) as error:
    logger.debug('traceback:', exc_info=error)
    code = _exit_code(error)
  if code:
    processes.leave(code)
  return code


def _exit_code(error: BaseException) -> int:
  """Says what went wrong and returns the exit code; raises the error again where it is a fault."""
  match error:
    case errors.ConfigError():
      return _fail(2, error)
    case errors.TrainingError():
      return _fail(1, error)
    case errors.PreemptedError():
      return _fail(RESUME, error)
    case OSError():  # The data set is readable, and the workdir writable, or was.
      return _fail(
          1, f'{error}; fix this, and the same command resumes from the last checkpoint')
    case KeyboardInterrupt():
      return _fail(130, 'interrupted; the same command goes on from the last checkpoint')
    case Exception() if processes.lost(error):
      return _fail(RESUME, f'another process is gone ({errors.first_line(error)}); start all of '
                           'them again, and they go on from the last checkpoint')
  if processes.joined():  # The others wait; they must see this one end.
    traceback.print_exception(error)
    return 1
  raise error


def _fail(code: int, reason: object) -> int:
  print(f'kdih: {" ".join(str(reason).split())}', file=sys.stderr)
  return code
