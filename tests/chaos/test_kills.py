"""A few of the kills that `python -m tests.chaos` makes by the hundred."""
import pytest


@pytest.fixture(scope='module')
def killed(outcomes):
  """The summary of some kills."""
  return outcomes('--parts=kills', '--kinds=rewind,streaming', '--kills=4')


def named(summary) -> dict[str, set[str]]:
  """The problems of each try that ended otherwise than uninterrupted, by their names."""
  return {name: set(failure['outcome'].split(', '))
          for name, failure in summary['failures'].items()}


def count(summary) -> int:
  """How many tries were made."""
  return sum(sum(outcomes.values()) for kinds in summary['outcomes'].values()
             for outcomes in kinds.values())


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_an_undisturbed_one(killed):
  assert count(killed) == 4 and killed['killed'] >= 2
  assert named(killed) == {}
