"""A few of the kills that `python -m tests.chaos` makes by the hundred."""
import pytest

# What is not yet as it should be; see the failures in launch/results/chaos.json.
OPEN = {'events', 'left over', 'called damaged', 'called damaged afterwards', 'moved to damaged'}


@pytest.fixture(scope='module')
def killed(outcomes):
  """The summary of some kills."""
  return outcomes('--parts=kills', '--kinds=rewind,together,report', '--kills=7')


def named(summary) -> dict[str, set[str]]:
  """The problems of each try that ended otherwise than uninterrupted, by their names."""
  return {name: set(failure['outcome'].split(', '))
          for name, failure in summary['failures'].items()}


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_numbers(killed):
  assert len(killed['tries']) == 7 and killed['killed'] >= 5
  assert {name: found - OPEN for name, found in named(killed).items()
          if found - OPEN and ':rewind:' not in name} == {}


@pytest.mark.slow
@pytest.mark.xfail(reason='steps stand twice among the events; temporary files, and checkpoints that '
                          'were being deleted, stay; a run that rewinds has other numbers')
def test_a_run_that_is_killed_leaves_what_an_undisturbed_one_leaves(killed):
  assert named(killed) == {}
