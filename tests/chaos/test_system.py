"""A few of the faults of the system that `python -m tests.chaos` makes by the hundred."""
import pytest

from tests.chaos.test_kills import count, named


@pytest.fixture(scope='module')
def failed(outcomes):
  """The summary of some faults."""
  return outcomes('--parts=faults', '--kinds=streaming,report', '--faults=8')


@pytest.mark.slow
def test_a_run_that_the_system_fails_ends_as_an_undisturbed_one_afterwards(failed):
  assert count(failed) == 8
  assert named(failed) == {}
