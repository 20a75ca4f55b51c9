"""What made a result is written down so that it can be run again."""
import pathlib
import sys

import pytest

import kdih
from kdih.runtime import provenance

PACKAGE = pathlib.Path(kdih.__file__).parent


@pytest.mark.parametrize(('program', 'expectation'), [
    (PACKAGE / 'main.py', 'python -m kdih.main'),
    (PACKAGE / 'sweep' / '__main__.py', 'python -m kdih.sweep'),
    (PACKAGE / 'benchmark' / '__main__.py', 'python -m kdih.benchmark'),
    ('my/program.py', 'my/program.py')])
def test_the_command_of_a_program_names_its_module_and_no_path(monkeypatch, program, expectation):
  monkeypatch.setattr(sys, 'argv', [str(program), '--config=a.py', '--workdir=my runs'])
  assert provenance.collect()['command'] == f"{expectation} --config=a.py '--workdir=my runs'"
