"""Cases of a parametrized test that run only with --slow."""
import pytest


def slow(*values):
  """A case that takes long and resembles the others."""
  return pytest.param(*values, marks=pytest.mark.slow)
