"""The errors that a user can mend; `kdih.main` prints each as one line."""
import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator


class ConfigError(ValueError):
  """A setting is wrong. The message is one line that names it and the remedy."""


class UnfitError(ConfigError):
  """A method does not fit a pair of teacher and student; `method` is its name."""

  def __init__(self, message: str, method: str):
    super().__init__(message)
    self.method = method


class DataError(ConfigError):
  """A data set cannot be read. The message is one line that says how to get it."""


class TrainingError(RuntimeError):
  """Training cannot go on (a full disk, damaged checkpoints)."""


class NotFiniteError(TrainingError):
  """The loss is not finite; the message names phase and step."""


class PreemptedError(RuntimeError):
  """The process was asked to stop and has saved what it had; the same command goes on."""


def closest(value: object, choices: Iterable[str]) -> str:
  """`did you mean 'x'? `, or nothing where no choice resembles `value`."""
  close = difflib.get_close_matches(str(value), list(choices), n=1)
  return f'did you mean {close[0]!r}? ' if close else ''


def unknown(setting: str, value: object, choices: Iterable[str]) -> ConfigError:
  """The error for a `value` that is not among `choices`, closest choice first."""
  choices = sorted(choices)
  return ConfigError(f'{setting}: unknown {value!r}; {closest(value, choices)}'
                     f'choose from: {", ".join(choices)}')


def first_line(error: BaseException) -> str:
  """What a library says of its error, without the lines that explain; never empty."""
  if isinstance(error, SystemExit):
    return f'sys.exit({error.code!r})'
  line = str(error).strip().split('\n')[0]
  if isinstance(error, KeyError) and line:  # It says no more than the key.
    return f'KeyError: {line}'
  return line or type(error).__name__


@contextlib.contextmanager
def of_users_code(
    said: str, known: Callable[[BaseException], str | None] = lambda _: None
) -> Iterator[None]:
  """Makes a ConfigError of whatever code of a user's raises, but for an interruption.

  Args:
    said: how the line begins.
    known: an error to the rest of the line, or None for what the error says itself.
  """
  try:
    yield
  except (ConfigError, KeyboardInterrupt, GeneratorExit):
    raise
  except BaseException as error:  # sys.exit is none of the Exceptions.
    raise ConfigError(in_line(f'{said}{known(error) or first_line(error)}')) from error


def in_line(text: object) -> str:
  """As `printable`, with one space where there are several."""
  return ' '.join(printable(str(text)).split())


def printable(text: str) -> str:
  """The text in one line, without control characters and halves of characters."""
  return ''.join(char if char.isprintable() else ' ' if char.isspace() else '\ufffd'
                 for char in text)
