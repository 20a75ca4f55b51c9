"""Kinds of values: which values a setting accepts, and how they are read from a command line."""
import ast
import ctypes
import dataclasses
import math
import re
import reprlib
from typing import Any

from kdih import errors

_SMALLEST = 2.0**-126  # The smallest normal number in float32. XLA treats smaller ones as 0.
_INT32 = 2**31 - 1
_BRACKETS = {'(': ')', '[': ']'}  # Around a tuple.


class Kind:
  """The values that a setting accepts."""

  def check(self, setting: str, value: Any) -> None:
    """Raises ConfigError, which names the setting, if it does not accept the value."""
    raise NotImplementedError

  def read(self, setting: str, text: str) -> Any:
    """Returns the value that `text` on a command line stands for, which is not checked yet.

    Raises:
      ConfigError: the text does not stand for a value of this kind.
    """
    raise NotImplementedError

  def canonical(self, value: Any) -> Any:
    """Returns the value in the form in which equal values are identical: 1.0 for 1 and for 1.0."""
    return value

  @property
  def words(self) -> str:
    """Returns the end of the sentence 'The setting must be ...'."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
  """True or False."""

  def check(self, setting, value):
    if not isinstance(value, bool):
      raise _wrong(setting, value, self)

  def read(self, setting, text):
    known = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.strip().lower() not in known:
      raise _wrong(setting, text, self)
    return known[text.strip().lower()]

  @property
  def words(self):
    return 'True or False'


@dataclasses.dataclass(frozen=True)
class Whole(Kind):
  """A whole number from `low` to `high`, both included."""

  low: int = 0
  high: int = _INT32

  def check(self, setting, value):
    if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
      raise _wrong(setting, value, self)

  def read(self, setting, text):
    if not re.fullmatch(r'[+-]?[0-9]{1,400}', text.strip()):
      raise _wrong(setting, text, self)
    return int(text)

  @property
  def words(self):
    return f'a whole number from {_short(self.low)} to {_short(self.high)}'


@dataclasses.dataclass(frozen=True)
class Number(Kind):
  """A number between `low` and `high` in float32; a bound is included unless it is open.

  A number that overflows float32 counts as infinity. One that underflows to 0 is refused.
  """

  low: float
  high: float
  open_low: bool = False
  open_high: bool = False

  def check(self, setting, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise _wrong(setting, value, self)
    _check_not_tiny(setting, value)
    single, low, high = float32(value), float32(self.low), float32(self.high)
    if not (low < single or low == single and not self.open_low) or not (
        single < high or single == high and not self.open_high):
      raise _wrong(setting, value, self)

  def read(self, setting, text):
    try:
      return float(text if text.isascii() and '_' not in text else '')
    except ValueError:
      raise _wrong(setting, text, self) from None

  def canonical(self, value):
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

  @property
  def words(self):
    low, high = _short(self.low), _short(self.high)
    if not (self.open_low or self.open_high):
      return f'a number from {low} to {high}'
    return (f'a number {"above" if self.open_low else "of at least"} {low} and '
            f'{"below" if self.open_high else "at most"} {high}')


def float32(number: float) -> float:
  """Returns a number rounded to float32: 0 if it underflows, infinity if it overflows."""
  try:
    single = ctypes.c_float(number).value
  except OverflowError:  # An int beyond float64.
    return float('inf') if number > 0 else -float('inf')
  return 0.0 if abs(single) < _SMALLEST else single


def _check_not_tiny(setting: str, number: float) -> None:
  if number and not float32(number):
    raise errors.ConfigError(f'{setting}: is {shown(number)}, which is 0 in float32; set it to 0 '
                             'or to a larger number')


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
  """One of some names."""

  names: tuple[str, ...]

  def check(self, setting, value):
    if not isinstance(value, str):
      raise _wrong(setting, value, self)
    if value not in self.names:
      raise errors.unknown(setting, value, self.names)

  def read(self, setting, text):
    del setting
    return _unquoted(text)

  @property
  def words(self):
    return 'one of ' + ', '.join(map(repr, self.names))


@dataclasses.dataclass(frozen=True)
class Text(Kind):
  """A string that matches the regular expression `pattern`, which `form` describes in words."""

  pattern: str = r'[^\0]*'
  form: str = 'a string'

  def check(self, setting, value):
    if not (isinstance(value, str) and re.fullmatch(self.pattern, value, re.DOTALL)):
      raise _wrong(setting, value, self)

  def read(self, setting, text):
    del setting
    return _unquoted(text)

  @property
  def words(self):
    return self.form


RATE = Number(0, 1e9, open_low=True)  # A learning rate.
NAME = Text(r'[^\0]+', 'a name')


@dataclasses.dataclass(frozen=True)
class Many(Kind):
  """A tuple of at least `least` values of one kind, which all differ if `distinct`."""

  kind: Kind
  least: int = 0
  distinct: bool = False

  def check(self, setting, value):
    if not isinstance(value, tuple | list):
      raise errors.ConfigError(f'{setting}: is {shown(value)}; it must be {self.words}; write a '
                               'single value as (VALUE,)')
    for item in value:
      self.kind.check(setting, item)
    if len(value) < self.least:
      raise errors.ConfigError(
          f'{setting}: is {shown(tuple(value))}; it must hold {self.least} or more values')
    if self.distinct and len(set(value)) < len(value):
      raise errors.ConfigError(
          f'{setting}: is {shown(tuple(value))}; it must hold every value only once')

  def read(self, setting, text):
    """Reads values between commas, with or without brackets around them."""
    return tuple(self.kind.read(setting, part) for part in split(_without_brackets(text)) if part)

  def canonical(self, value):
    return list(map(self.kind.canonical, value)) if isinstance(value, tuple | list) else value

  @property
  def words(self):
    return f'a tuple, each value {self.kind.words}'


@dataclasses.dataclass(frozen=True)
class OneOrMany(Kind):
  """A value of a kind, or a tuple of values of this kind."""

  kind: Kind

  def check(self, setting, value):
    if isinstance(value, tuple | list):
      Many(self.kind, least=1).check(setting, value)
    else:
      self.kind.check(setting, value)

  def read(self, setting, text):
    several = len(split(text)) > 1 or text.strip()[:1] in _BRACKETS
    return (Many(self.kind) if several else self.kind).read(setting, text)

  def canonical(self, value):
    return (Many(self.kind) if isinstance(value, tuple | list) else self.kind).canonical(value)

  @property
  def words(self):
    return f'{self.kind.words}, or a tuple of such values'


@dataclasses.dataclass(frozen=True)
class Group(Kind):
  """A group of fields that the user names: numbers, strings, and tuples and groups of these."""

  def check(self, setting, value):
    """Checks a dict."""
    if not isinstance(value, dict):
      raise errors.ConfigError(f'{setting}: is {shown(value)}; it must be a group of fields')
    check_plain(setting, value)

  @property
  def words(self):
    return 'a group of fields with names of your choice'


@dataclasses.dataclass(frozen=True)
class Plain(Kind):
  """Any value that JSON can represent and whose numbers float32 can represent."""

  def check(self, setting, value):
    check_plain(setting, value)

  @property
  def words(self):
    return 'a number, a string, or a tuple of these'


def check_plain(setting: str, value: Any) -> None:
  """Raises ConfigError unless JSON can represent the value, and float32 its numbers."""
  if isinstance(value, dict):
    for key, item in value.items():
      if not isinstance(key, str):
        raise errors.ConfigError(f'{setting}: the key {shown(key)} must be a string; rename it')
      check_plain(f'{setting}.{errors.in_line(key)}', item)
  elif isinstance(value, tuple | list):
    for item in value:
      check_plain(setting, item)
  elif isinstance(value, int) and abs(value) > _INT32:
    raise errors.ConfigError(f'{setting}: is {shown(value)}; it must be below {_INT32 + 1}')
  elif isinstance(value, float):
    _check_not_tiny(setting, value)
    if not math.isfinite(float32(value)):
      raise errors.ConfigError(f'{setting}: is {shown(value)}; it must be finite in float32')
  elif not (value is None or isinstance(value, bool | int | str)):
    raise errors.ConfigError(f'{setting}: is {shown(value)}; it must be a number, a string, or a '
                             'tuple or group of these')


def read_plain(text: str) -> Any:
  """Returns the value that a text most likely stands for: a number, a bool, None, a tuple of such
  values, or the text itself."""
  parts = split(text)
  if len(parts) > 1:
    return tuple(map(read_plain, parts))
  text = text.strip()
  if text[:1] in _BRACKETS and text[-1:] == _BRACKETS[text[0]]:
    inside = split(text[1:-1])
    return tuple(read_plain(part) for part in inside if part)
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  if re.fullmatch(r'[+-]?[0-9]{1,400}', text):
    return int(text)
  try:
    return float(text if text.isascii() and '_' not in text else '')
  except ValueError:
    return None if text == 'None' else _unquoted(text)


def split(text: str) -> list[str]:
  """Returns the stripped parts between commas; commas within brackets or quotes do not separate."""
  parts, depth, quote, escaped = [''], 0, '', False
  for character in text:
    if quote:
      quote = '' if character == quote and not escaped else quote
      escaped = character == '\\' and not escaped
    elif character in '\'"' and parts[-1].rstrip()[-1:] in ('', *'([{,'):
      quote = character
    elif character in '([{':
      depth += 1
    elif character in ')]}':
      depth = max(depth - 1, 0)
    elif character == ',' and not depth:
      parts.append('')
      continue
    parts[-1] += character
  return [part.strip() for part in parts]


def _without_brackets(text: str) -> str:
  text = text.strip()
  closed = text[:1] in ('(', '[') and text[-1:] == _BRACKETS[text[0]]
  return text[1:-1] if closed and len(split(text)) == 1 else text


def _unquoted(text: str) -> str:
  """Returns the string within the quotes if the whole text is quoted, else the text."""
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
    try:
      inside = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      return text
    return inside if isinstance(inside, str) else text
  return text


def _short(number: float) -> str:
  """Returns a bound in its usual form: '2^31 - 1' for 2147483647, and '1e-6' for 1e-06."""
  if isinstance(number, int):
    power = (number + 1).bit_length() - 1
    return f'2^{power} - 1' if power >= 31 and number + 1 == 1 << power else str(number)
  return re.sub(r'e([+-])0*', lambda sign: 'e' + sign[1].strip('+'), f'{number:g}')


def shown(value: Any) -> str:
  """Returns a value as a message shows it: in one line and abbreviated."""
  return errors.in_line(reprlib.repr(value))


def _wrong(setting: str, value: Any, kind: Kind) -> errors.ConfigError:
  return errors.ConfigError(f'{setting}: is {shown(value)}; it must be {kind.words}')

