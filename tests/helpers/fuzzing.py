"""How often property-based tests try, and values of every kind to try with."""
import math
import sys

import ml_collections
import numpy as np
from hypothesis import HealthCheck, settings, strategies as st

_SLOW = '--slow' in sys.argv


def times(few: int, many: int):
  """A decorator: the same `few` examples each time, or with --slow `many` others."""
  return settings(max_examples=many if _SLOW else few, derandomize=not _SLOW, deadline=None,
                  database=None, suppress_health_check=list(HealthCheck))


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from(
        [0, 1, -1, 10**400, 2**31, 2**63, math.nan, math.inf, -math.inf, 1e308, -0.0]))
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(
    ['', '..', '../../x', '/etc/passwd', 'a\nb', '\0', ':', 'x:y', '..:x', 'os:system', 'ce',
     'teacher', 'stage1', 'student', '<b>', '\ud800', 'x' * 300, '{}', '%s', '1e3', 'nan']))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=5)
ANYTHING = st.one_of(
    JSON, st.lists(JSON, max_size=3).map(tuple), st.binary(max_size=4),
    st.dictionaries(st.integers(), JSON, max_size=2),
    st.builds(object), st.just(len), st.builds(lambda: np.zeros((2, 3))), st.just(np.int64(3)),
    st.just(np.float32(2)), st.just(1j), st.just({1, 2}), st.builds(
        lambda: ml_collections.ConfigDict({'x': 1})),
    st.builds(lambda: ml_collections.config_dict.placeholder(int)),
    st.builds(lambda: ml_collections.config_dict.required_placeholder(str)))
