"""What made a result is written down so that it can be run again."""
import pathlib
import platform
import re
import subprocess
import sys

import jax
import pytest

import kdih
from kdih.phases import identity
from kdih.runtime import provenance, run_files

PACKAGE = pathlib.Path(kdih.__file__).parent


@pytest.mark.parametrize(('program', 'expectation'), [
    (PACKAGE / 'main.py', 'python -m kdih.main'),
    (PACKAGE / 'sweep' / '__main__.py', 'python -m kdih.sweep'),
    (PACKAGE / 'benchmark' / '__main__.py', 'python -m kdih.benchmark'),
    ('my/program.py', 'my/program.py')])
def test_the_command_of_a_program_names_its_module_and_no_path(monkeypatch, program, expectation):
  monkeypatch.setattr(sys, 'argv', [str(program), '--config=a.py', '--workdir=my runs'])
  assert provenance.collect()['command'] == f"{expectation} --config=a.py '--workdir=my runs'"


def test_a_command_with_bytes_that_are_no_text_can_be_written(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['x.py', '--workdir=a\udcffb\n'])
  run_files.write(tmp_path / 'made_by.json', provenance.collect())
  assert '\\n' not in (tmp_path / 'made_by.json').read_text()
  assert run_files.read(tmp_path / 'made_by.json', dict)['command'] == "x.py '--workdir=a\ufffdb '"


def test_changes_of_the_package_that_are_not_committed_mark_the_commit(tmp_path):
  def git(*arguments):
    subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b',
                    *arguments], check=True, capture_output=True)

  def commit():
    provenance._git_commit.cache_clear()
    return provenance._git_commit(package)

  package = tmp_path / 'package'
  package.mkdir()
  (package / 'a.py').write_text('')
  assert commit() == 'unknown'
  git('init')
  git('add', '.')
  git('commit', '-m', 'x')
  clean = commit()
  assert re.fullmatch('[0-9a-f]{40}', clean)
  (tmp_path / 'notes.txt').write_text('')  # It is outside the package.
  assert commit() == clean
  (package / 'b.py').write_text('')
  assert commit() == f'{clean}-dirty'
  (package / 'a.py').write_text('1')
  assert commit() == f'{clean}-dirty'


def test_the_machine_and_the_versions_that_are_installed_are_recorded(monkeypatch):
  monkeypatch.setattr(provenance, '_PACKAGES', ('jax', 'no-such-package'))
  provenance._versions.cache_clear()
  try:
    made_by = provenance.collect()
  finally:
    provenance._versions.cache_clear()
  assert made_by['versions'] == {'kdih': kdih.__version__, 'python': platform.python_version(),
                                 'jax': jax.__version__}
  assert made_by['devices'] == ['cpu'] * jax.device_count() and made_by['platform'] == 'cpu'
  assert 1 <= made_by['cpus_usable'] <= made_by['cpu_count']


def test_the_identity_of_a_run_has_the_same_versions():
  made_by, versions = provenance.collect(), identity.of_versions()
  assert list(versions) == ['jax', 'jaxlib', 'flax', 'optax', 'platform', 'devices', 'x64', 'prng',
                            'xla_flags']
  assert versions['devices'] == jax.device_count() == 4
  assert all(versions[name] == made_by['versions'][name] for name in ('jax', 'flax', 'optax'))
