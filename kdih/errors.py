"""The errors that a user can fix; every program prints each of them as one line."""
import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator


class ConfigError(ValueError):
  """A setting is wrong. The message is one line that names it and the remedy."""

  def __init__(self, message: str):
    super().__init__(printable(message))  # Names of files and classes may hold control codes.


class UnfitError(ConfigError):
  """A method cannot be used with a pair of teacher and student; `method` is its name."""

  def __init__(self, message: str, method: str):
    super().__init__(message)
    self.method = method


class FileError(ConfigError):
  """A file is damaged, for this `reason`. The message is one line: file, reason and remedy."""

  def __init__(self, path: object, reason: str):
    self.reason = reason
    super().__init__(in_line(f'{path} is damaged ({reason}); restore it from a copy, or remove it '
                             'to have it made again'))


class UnreadableError(ConfigError):
  """A file of a run folder cannot be read now, for this `reason`, and is not known to be damaged.

  It is no FileError: nobody does without what may be whole.
  """

  def __init__(self, path: object, reason: str):
    super().__init__(in_line(
        f'{path} cannot be read ({reason}); make it readable, or run the same command again'))


class DataError(ConfigError):
  """A data set cannot be read. The message is one line that says how to get it."""


class TrainingError(RuntimeError):
  """Training cannot continue (a full disk, damaged checkpoints)."""


class NotFiniteError(TrainingError):
  """The loss is not finite; the message names phase and step."""


class PreemptedError(BaseException):
  """The process received SIGTERM; the same command resumes the run.

  It is no Exception, as KeyboardInterrupt is none: it comes at any moment, and whoever catches the
  errors of a file, a library or a user's code must not take it for one of them.
  """


def closest(value: object, choices: Iterable[str]) -> str:
  """Returns "did you mean 'x'? ", or '' if no choice resembles `value`."""
  close = difflib.get_close_matches(str(value), list(choices), n=1)
  return f'did you mean {close[0]!r}? ' if close else ''


def unknown(setting: str, value: object, choices: Iterable[str]) -> ConfigError:
  """Returns the error for a `value` that is not among `choices`; it suggests the closest choice."""
  choices = sorted(choices)
  return ConfigError(f'{setting}: unknown {value!r}; {closest(value, choices)}'
                     f'choose from: {", ".join(choices)}')


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or the name of its type if it has none."""
  if isinstance(error, SystemExit):
    return f'sys.exit({error.code!r})'
  line = str(error).strip().split('\n')[0]
  if isinstance(error, KeyError) and line:  # Its message is only the key.
    return f'KeyError: {line}'
  return line or type(error).__name__


@contextlib.contextmanager
def of_users_code(
    prefix: str, known: Callable[[BaseException], str | None] = lambda _: None
) -> Iterator[None]:
  """Turns every error that the user's code raises into a ConfigError; interruptions pass.

  Args:
    prefix: the beginning of the message.
    known: returns the rest of the message for an error, or None to take the error's first line.
  """
  try:
    yield
  except (ConfigError, PreemptedError, KeyboardInterrupt, GeneratorExit):
    raise
  except BaseException as error:  # SystemExit is not an Exception.
    raise ConfigError(in_line(f'{prefix}{known(error) or first_line(error)}')) from error


def in_line(text: object) -> str:
  """Returns the text as `printable` does, with single spaces."""
  return ' '.join(printable(str(text)).split())


def printable(text: str) -> str:
  """Returns the text in one line; U+FFFD replaces control characters and lone surrogates."""
  return ''.join(char if char.isprintable() else ' ' if char.isspace() else '\ufffd'
                 for char in text)
