"""Who may work in the folder of a run at the same time."""
import errno
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from kdih import errors
from kdih.runtime import devices, files
from kdih.runtime.workdir import Workdir, check_apart
from kdih.training import orbax_files
from tests.helpers.runs import ROOT


def refused(context) -> bool:
  try:
    with context:
      return False
  except (errors.ConfigError, files.InUseError):
    return True


@pytest.mark.parametrize(('holder', 'other', 'is_refused'), [
    (Workdir.locked, Workdir.locked, True),
    (Workdir.locked, lambda w: w.locked_phase('teacher'), True),
    (lambda w: w.locked_phase('teacher'), Workdir.locked, True),
    (lambda w: w.locked_phase('student/kd'), Workdir.locked, True),
    (lambda w: w.locked_phase('student/kd'), lambda w: w.locked_phase('student/kd'), True),
    (lambda w: w.locked_phase('student/kd'), lambda w: w.locked_phase('student/dih'), False)])
def test_a_run_is_alone_in_its_folder_and_a_phase_beside_other_phases(
    tmp_path, holder, other, is_refused):
  with holder(Workdir(tmp_path / 'w')):
    assert refused(other(Workdir(tmp_path / 'w'))) == is_refused
    assert not refused(Workdir(tmp_path / 'another').locked())
  assert not refused(other(Workdir(tmp_path / 'w')))
  assert not refused(holder(Workdir(tmp_path / 'w')))


def test_an_error_of_the_run_is_not_taken_for_a_lock(tmp_path):
  with pytest.raises(files.InUseError, match='of another folder'), Workdir(tmp_path).locked():
    raise files.InUseError('of another folder')


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
  def missing(*_):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(fcntl, 'flock', missing)
  with Workdir(tmp_path).locked():
    assert (tmp_path / '.lock').exists()
  assert capsys.readouterr().err == (
      f'{tmp_path}/.lock: this file system has no locks; start no second process here\n')


def lock_kd(workdir):
  return workdir.locked_phase('student/kd')


LOCKS = {'.lock': Workdir.locked, '.locks/other': Workdir.locked, '.locks': lock_kd,
         '.locks/student.kd': lock_kd, '.manifest.lock': Workdir.locked_manifest}


@pytest.mark.parametrize('name', LOCKS)
def test_a_lock_that_cannot_be_taken_is_refused_with_its_setting(tmp_path, name):
  if name == '.locks':
    (tmp_path / name).touch()
  else:
    (tmp_path / name).mkdir(parents=True)
  with pytest.raises(errors.ConfigError) as raised, LOCKS[name](Workdir(tmp_path)):
    pass
  assert str(raised.value).startswith(f'--workdir: {tmp_path} cannot be locked (')
  assert name in str(raised.value)
  assert str(raised.value).endswith(
      '); make it writable for you, with all that it holds, or choose another folder')


AS_ANOTHER = """
import os, sys
from kdih.runtime.workdir import Workdir
path = sys.argv[1]
os.setgroups([])
os.setresuid(65534, 65534, 65534)
for context in (Workdir(path).locked(), Workdir(path).locked_phase('teacher')):
  try:
    with context:
      print('locked')
  except Exception as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason='only root becomes another user')
def test_the_lock_of_another_user_is_refused_with_its_setting():
  with tempfile.TemporaryDirectory() as workdir:  # The other user cannot get to that of pytest.
    os.chmod(workdir, 0o777)
    pathlib.Path(workdir, '.lock').touch(mode=0o644)
    done = subprocess.run([sys.executable, '-c', AS_ANOTHER, workdir], cwd=ROOT, check=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
                          text=True)
  assert done.stdout.splitlines() == 2 * [
      f'--workdir: {workdir} cannot be locked (Permission denied: {workdir}/.lock); make it '
      'writable for you, with all that it holds, or choose another folder']


@pytest.mark.parametrize('inner', ['student', 'student/kd', 'teacher/checkpoints/x', 'comparison',
                                   'heads/..//heads', 'link/kd'])
def test_a_workdir_in_a_folder_that_a_run_fills_is_refused(tmp_path, inner):
  Workdir(tmp_path / 'run').open({})
  (tmp_path / 'run/student').mkdir()
  (tmp_path / 'run/link').symlink_to(tmp_path / 'run/student')
  with pytest.raises(errors.ConfigError) as raised:
    check_apart(tmp_path / 'run' / inner)
  assert str(raised.value).startswith(f'--workdir: {tmp_path}/run/')
  assert str(raised.value).endswith(
      f'of the run in {tmp_path}/run, which could not be resumed then; choose another folder')


@pytest.mark.parametrize('path', ['run', 'run/net', 'run/student.Net/seed3', 'run/net/seed3/more',
                                  'student', 'student/teacher', 'gs://bucket/run'])
def test_other_workdirs_in_a_workdir_are_taken(tmp_path, monkeypatch, path):
  Workdir(tmp_path / 'run').open({})
  monkeypatch.chdir(tmp_path)
  check_apart(path)


@pytest.mark.parametrize('name', ['job[1]', 'a*b', 'what?', 'a\\b'])
def test_a_folder_in_which_orbax_finds_no_checkpoint_is_refused(tmp_path, name):
  """Orbax takes its path for a pattern."""
  for path in (tmp_path / name, tmp_path / name / 'run'):
    with pytest.raises(errors.ConfigError) as raised:
      Workdir(path).manifest()
    assert str(raised.value) == (f'--workdir: {path} has one of the characters * ? [ \\ in its '
                                 'path, with which no checkpoint is found; choose another folder')
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize('name', ['a]b', 'a b', 'a%20b', '#1', '{x}', 'ä', "it's", '$HOME', '~'])
def test_other_characters_in_the_path_are_taken(tmp_path, name):
  state = {'params': {'w': np.ones(3)}}
  Workdir(tmp_path / name).manifest()
  orbax_files.export(tmp_path / name / 'variables', state, {'x': 1})
  assert orbax_files.restore(tmp_path / name / 'variables')['params']['w'].tolist() == [1, 1, 1]
  assert orbax_files.shapes(tmp_path / name / 'variables', 'variables') == {'params/w': (3,)}


def test_a_process_that_does_not_see_a_student_yet_has_the_results_of_the_first(
    tmp_path, finished, monkeypatch):
  sent = []
  monkeypatch.setattr(
      devices, 'from_first_process', lambda content: sent.append(content) or content)
  results = Workdir(finished).results()
  late = shutil.copytree(finished, tmp_path / 'late', ignore=shutil.ignore_patterns('dih'))
  monkeypatch.setattr(devices, 'from_first_process', lambda _: sent.pop(0))
  assert Workdir(late).results() == results and not sent
