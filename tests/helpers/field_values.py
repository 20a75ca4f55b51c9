"""Values that a field of the config can have, by its kind, and values that it cannot."""
import math

import numpy as np
from hypothesis import strategies as st

from kdih.config import values

_SMALLEST = 2.0**-126  # In float32, of the normal numbers.
# Of no kind: what no JSON holds, or no float32.
_NOTHING = st.one_of(
    st.just(None), st.builds(object), st.just(len), st.just(b'ce'), st.just(1j), st.just({1, 2}),
    st.builds(lambda: np.zeros((2, 3))), st.just(np.int64(3)), st.just(np.float32(0.5)))
_NOT_FINITE = (math.nan, math.inf, -math.inf, 1e308, -1e308, 1e39)
_TINY = (5e-324, -5e-324, 1e-40)  # What float32 takes for 0.
_TEXTS = ('<script>', '\N{ARABIC-INDIC DIGIT THREE}', '0.5', '3', 'True', 'nan', '')
_SAMPLES = (*_NOT_FINITE, *_TINY, *_TEXTS, -1, -1.0, 10**400, 2**63, 1e9 + 64, True, (0.5,),
            ('ce',), {'x': 1}, {})


def valid(kind: values.Kind) -> st.SearchStrategy:
  """Values of the kind."""
  return _VALID[type(kind)](kind)


def broken(kind: values.Kind) -> st.SearchStrategy:
  """Values that are not of the kind."""
  return st.one_of(_NOTHING, _BROKEN[type(kind)](kind))


def texts(value) -> list[str]:
  """What a command line may give for a value: as Python shows it, a tuple without brackets too."""
  if isinstance(value, tuple):
    inside = ','.join(map(repr, value))
    return [repr(value), f'[{inside}]', inside, *([','.join(value)] if _plain(value) else [])]
  return [repr(value), *([value] if isinstance(value, str) and _plain((value,)) else [])]


def _plain(parts: tuple) -> bool:
  """Whether these are texts that need no quotes."""
  return all(isinstance(part, str) and part == part.strip() and not set(part) & set('\'"()[]{},')
             for part in parts) and all(parts)


def _whole(kind: values.Whole):
  return st.one_of(st.integers(kind.low, kind.high), st.sampled_from([kind.low, kind.high]))


def _whole_broken(kind: values.Whole):
  return st.one_of(
      st.integers(max_value=kind.low - 1), st.integers(min_value=kind.high + 1),
      st.sampled_from([kind.low - 1, kind.high + 1, float(kind.low), kind.low + 0.5, False]),
      st.sampled_from([sample for sample in _SAMPLES
                       if type(sample) is not int or not kind.low <= sample <= kind.high]))


def _number(kind: values.Number):
  low, high = _bounds(kind)
  parts = [st.floats(max(low, _SMALLEST), high), st.just(high),
           st.integers(math.ceil(low), math.floor(high))]
  if low <= 0:
    parts.append(st.sampled_from([0, 0.0]))
  if low < 0:
    parts += [st.floats(low, -_SMALLEST), st.just(low)]
  return st.one_of(parts)


def _bounds(kind: values.Number) -> tuple[float, float]:
  """The least and the largest value of the kind, in float32."""
  low, high = np.float32(kind.low), np.float32(kind.high)
  low = max(np.nextafter(low, np.float32(np.inf)), _SMALLEST) if kind.open_low else low
  high = np.nextafter(high, np.float32(-np.inf)) if kind.open_high else high
  return float(low), float(high)


def _number_broken(kind: values.Number):
  low, high = float(np.float32(kind.low)), float(np.float32(kind.high))
  beyond = [float(np.nextafter(np.float32(low), np.float32(-np.inf))),
            float(np.nextafter(np.float32(high), np.float32(np.inf)))]
  beyond += [low, int(low)] * kind.open_low + [high, int(high)] * kind.open_high
  beyond = [number for number in beyond if not (low < number < high)]
  return st.one_of(
      st.floats(max_value=low * 1.001 - 1, allow_nan=False),
      st.floats(min_value=high * 1.001, allow_nan=False), st.sampled_from(beyond),
      st.sampled_from([sample for sample in _SAMPLES
                       if isinstance(sample, bool) or not isinstance(sample, int | float)
                       or not low <= sample <= high or sample in _TINY]))


def _choice_broken(kind: values.Choice):
  return st.one_of(
      st.sampled_from(kind.names).map(lambda name: f'{name}x'), st.sampled_from(kind.names).map(
          lambda name: (name,)), st.text(max_size=4).filter(lambda text: text not in kind.names),
      st.sampled_from([sample for sample in _SAMPLES if sample not in kind.names]))


def _text(kind: values.Text):
  if kind.pattern == values.Text().pattern:
    return st.text(st.characters(exclude_characters='\0'), max_size=5)
  if kind.pattern == values.NAME.pattern:
    return st.one_of(st.text(st.characters(exclude_characters='\0'), min_size=1, max_size=5),
                     st.sampled_from(['ce', 'stage1', 'train[:90%]', 'x:y']))
  return st.from_regex(kind.pattern, fullmatch=True)


def _text_broken(kind: values.Text):
  names = () if kind.pattern == values.Text().pattern else ('',)
  if kind.pattern not in (values.Text().pattern, values.NAME.pattern):
    names = (*_TEXTS, 'views:0', 'views:-1', 'views:\N{ARABIC-INDIC DIGIT THREE}', 'views:8 ')
  return st.sampled_from([*names, 'a\0', *(sample for sample in _SAMPLES
                                           if not isinstance(sample, str))])


def _tuples(inner, least: int = 0, **limits):
  return st.lists(inner, min_size=least, max_size=max(3, least), **limits).map(tuple)


def _many(kind: values.Many):
  return _tuples(valid(kind.kind), kind.least, unique=kind.distinct)


def _many_broken(kind: values.Many):
  some = _tuples(valid(kind.kind))
  parts = [
      st.tuples(some, broken(kind.kind), some).map(lambda found: (*found[0], found[1], *found[2])),
      valid(kind.kind), st.sampled_from([{}, {'x': 1}, '<script>', 'ce', '', 3, math.nan, True])]
  if kind.least:
    parts.append(_tuples(valid(kind.kind)).map(lambda found: found[:kind.least - 1]))
  if kind.distinct:
    parts.append(valid(kind.kind).map(lambda item: (item, item)))
  return st.one_of(parts)


def _one_or_many_broken(kind: values.OneOrMany):
  def not_of_many(value):  # A tuple is none of the kind, but may be several of it.
    return not isinstance(value, tuple)

  return st.one_of(broken(kind.kind).filter(not_of_many),
                   st.one_of(_many_broken(values.Many(kind.kind, least=1))).filter(
                       lambda value: isinstance(value, tuple)))


_PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-values._INT32, values._INT32),
              st.floats(-1e30, 1e30, allow_subnormal=False).filter(
                  lambda number: not number or abs(number) >= _SMALLEST), st.text(max_size=3)),
    lambda inner: _tuples(inner), max_leaves=3)
_PLAIN_BROKEN = st.one_of(
    st.sampled_from([*_NOT_FINITE, *_TINY, 10**400, 2**31]),
    _NOTHING.filter(lambda value: value is not None))
_FIELD_NAMES = st.sampled_from(['width', 'depth', 'x', 'Y_2'])


def _group(kind: values.Group):
  del kind
  return st.recursive(
      st.dictionaries(_FIELD_NAMES, _PLAIN, max_size=2),
      lambda inner: st.dictionaries(_FIELD_NAMES, inner, max_size=2), max_leaves=2)


def _group_broken(kind: values.Group):
  return st.one_of(
      st.sampled_from([3, 0.5, True, 'x', (), ('x',)]),
      st.tuples(_group(kind), _FIELD_NAMES, st.one_of(_PLAIN_BROKEN, _PLAIN_BROKEN.map(
          lambda value: (1, value)))).map(lambda found: {**found[0], found[1]: found[2]}))


_VALID = {
    values.Flag: lambda kind: st.booleans(), values.Whole: _whole, values.Number: _number,
    values.Choice: lambda kind: st.sampled_from(kind.names), values.Text: _text,
    values.Many: _many,
    values.OneOrMany: lambda kind: st.one_of(valid(kind.kind), _tuples(valid(kind.kind), 1)),
    values.Group: _group, values.Plain: lambda kind: _PLAIN}
_BROKEN = {
    values.Flag: lambda kind: st.sampled_from(
        [0, 1, 0.0, *(sample for sample in _SAMPLES if sample is not True)]),
    values.Whole: _whole_broken, values.Number: _number_broken, values.Choice: _choice_broken,
    values.Text: _text_broken, values.Many: _many_broken, values.OneOrMany: _one_or_many_broken,
    values.Group: _group_broken, values.Plain: lambda kind: _PLAIN_BROKEN}
