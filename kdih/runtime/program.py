"""How every program runs: its help, its log, one line for an error, the exit code."""
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from kdih import errors
from kdih.runtime import logs, processes, surroundings

logger = logging.getLogger(__name__)

RESUME = 75  # EX_TEMPFAIL of sysexits.h; launch scripts start such a run again.
_INTERRUPTED = 130


def main(argv: list[str], help_text: str, body: Callable[[list[str]], int]) -> int:
  """Runs `body(argv)` and returns the exit code; prints `help_text` if `argv` has --help.

  The flags of `logs.FLAGS` set the level of the log; `body` does not see them. An error that the
  user can fix is printed as one line.

  Returns:
    The exit code of `body`; 2 for a wrong setting, 1 for a failed training, `RESUME` if the same
    command resumes the run without a fix, 130 for an interruption. What the program changes in its
    process is restored; see `surroundings.restored`.
  """
  with surroundings.restored():
    try:
      if {'--help', '-h', '-help', '--helpfull'} & set(argv):
        print(f'{help_text}\n{logs.USAGE}')
        code = 0
      else:
        levels = [logs.FLAGS[argument] for argument in argv if argument in logs.FLAGS]
        logs.configure(levels[-1] if levels else logging.INFO)
        _check_current_folder()
        code = body([argument for argument in argv if argument not in logs.FLAGS])
      sys.stdout.flush()
    except (Exception, errors.PreemptedError, KeyboardInterrupt) as error:
      if surroundings.in_main_thread():  # The program ends, and needs no other reason.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
      code = _exit_code(error)
    if code:
      processes.leave(code)
      if 'orbax.checkpoint' in sys.modules:
        gc.collect()  # Tasks of orbax that failed say so when they go: here nobody hears them.
    return code


def end(code: int) -> NoReturn:
  """Ends this process with an exit code of `main`, which a second signal does not change."""
  logging.disable()  # Libraries repeat what has been told of errors when their objects go.
  if code in (RESUME, _INTERRUPTED):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
  sys.exit(code)


def _check_current_folder() -> None:
  """Raises ConfigError if the current folder has been removed, which libraries ask for."""
  try:
    os.getcwd()
  except OSError as error:
    raise errors.ConfigError('the current folder has been removed; change to another folder '
                             'and run the same command there') from error


def _exit_code(error: BaseException) -> int:
  """Prints what went wrong and returns the exit code; raises the error again if it is a bug."""
  match error:
    case errors.ConfigError():
      return _fail(2, error, error)
    case errors.TrainingError():
      return _fail(1, error, error)
    case errors.PreemptedError():
      return _fail(RESUME, error, error)
    case OSError():  # The data set was readable, and the workdir writable, when the run began.
      return _fail(1, error, f'{error}; fix this and run the same command again to resume from the '
                             'last checkpoint')
    case KeyboardInterrupt():
      return _fail(_INTERRUPTED, error, 'interrupted; run the same command again to resume from '
                                        'the last checkpoint')
    case Exception() if processes.lost(error):
      return _fail(RESUME, error,
                   f'another process ended ({errors.first_line(error)}); start all processes again '
                   'to resume from the last checkpoint')
  if processes.joined():  # The other processes wait: this one must end without delay.
    traceback.print_exception(error)
    return 1
  raise error


def _fail(code: int, error: BaseException, reason: object) -> int:
  logger.debug('traceback:', exc_info=error)
  print(f'kdih: {errors.in_line(reason)}', file=sys.stderr)
  return code
