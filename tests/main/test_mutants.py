"""The mistakes that `python -m tests.helpers.mutation` makes fit the code as it is."""
import ast

import pytest

from tests.helpers import mutation
from tests.helpers.mutants import MUTANTS
from tests.helpers.runs import ROOT


def test_mistakes_are_of_four_packages_and_have_names_of_their_own():
  assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
  assert {mutant.package for mutant in MUTANTS} == {'distillation', 'methods', 'cohort', 'training'}


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_can_be_made_at_one_place_and_has_tests(mutant):
  text = (ROOT / 'kdih' / mutant.file).read_text()
  ast.parse(mutation.mutated(mutant, text))
  assert all((ROOT / 'tests' / name).is_file() for name in (*mutant.tests, mutation.LEARNS))
