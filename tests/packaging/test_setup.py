"""What setup.py promises: bounds that `.ci/more oldest` tries, and data files in the wheel."""
import runpy

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.runs import ROOT


@pytest.fixture
def declared(monkeypatch):
  """The arguments of `setuptools.setup`."""
  arguments = {}
  monkeypatch.setattr(setuptools, 'setup', arguments.update)
  runpy.run_path(str(ROOT / 'setup.py'))
  return arguments


def test_every_dependency_has_a_lower_bound_and_no_other(declared):
  assert declared['install_requires']
  for requirement in map(Requirement, declared['install_requires']):
    assert [spec.operator for spec in requirement.specifier] == ['>='], requirement


def test_the_oldest_versions_are_the_bounds(declared):
  lines = (ROOT / '.ci' / 'oldest.txt').read_text().splitlines()
  pinned = {}
  for requirement in map(Requirement, (line for line in lines if not line.startswith('#'))):
    spec, = requirement.specifier
    assert spec.operator == '=='
    pinned[requirement.name] = Version(spec.version)
  extras = [line for lines in declared['extras_require'].values() for line in lines]
  bounds = {requirement.name: Version(spec.version)
            for requirement in map(Requirement, [*declared['install_requires'], *extras])
            for spec in requirement.specifier}
  assert pinned == bounds


def test_the_wheel_has_every_file_that_is_no_document(declared):
  package = ROOT / 'kdih'
  patterns = declared['package_data']['kdih']
  included = {path for pattern in patterns for path in package.glob(pattern)}
  files = {path for path in package.rglob('*') if path.is_file()
           and '__pycache__' not in path.parts and path.suffix not in ('.py', '.md')}
  assert files <= included


def test_every_folder_with_code_is_a_package(declared):
  folders = {path.parent.relative_to(ROOT) for path in (ROOT / 'kdih').rglob('*.py')}
  assert {'.'.join(folder.parts) for folder in folders} == set(declared['packages'])
