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
from kdih.runtime import devices, files, places
from kdih.runtime.workdir import Workdir
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
    places.check_workdir(tmp_path / 'run' / inner)
  assert str(raised.value).startswith(f'--workdir: {tmp_path}/run/')
  assert str(raised.value).endswith(
      f'of the run in {tmp_path}/run, which could not be resumed then; choose another folder')


@pytest.mark.parametrize('path', ['run', 'run/net', 'run/student.Net/seed3', 'run/net/seed3/more',
                                  'student', 'student/teacher', 'gs://bucket/run'])
def test_other_workdirs_in_a_workdir_are_taken(tmp_path, monkeypatch, path):
  Workdir(tmp_path / 'run').open({})
  monkeypatch.chdir(tmp_path)
  places.check_workdir(path)


def test_the_folder_of_a_run_of_a_sweep_is_not_that_of_another_run(tmp_path):
  """It has no teacher: that of the sweep is two levels above."""
  workdir = tmp_path / 'net/net/seed3'
  places.check_workdir(workdir)
  (tmp_path / 'sweep.json').write_text('[]')
  with pytest.raises(errors.ConfigError, match='is the folder of a run of the sweep in'):
    places.check_workdir(workdir)
  for other in (tmp_path / 'net', tmp_path / 'net/net/mine', tmp_path / 'net/seed3'):
    places.check_workdir(other)
  (workdir / 'teacher').mkdir(parents=True)
  places.check_workdir(workdir)


@pytest.mark.parametrize('inner', ['student', 'teacher/new', 'heads'])
def test_a_report_in_a_phase_of_a_run_is_refused(tmp_path, inner):
  Workdir(tmp_path).open({})
  for folder in ('comparison', 'comparison/teacher', 'new'):
    places.check_output(tmp_path / folder)
  with pytest.raises(errors.ConfigError, match=f'^--output: {tmp_path}/{inner} lies in the folder'):
    places.check_output(tmp_path / inner)


@pytest.mark.parametrize('inner', ['x' * 300, 'new/' + 'x' * 300 + '/y'])
def test_a_name_that_is_too_long_is_refused(tmp_path, inner):
  with pytest.raises(errors.ConfigError, match=r'cannot be opened \(File name too long\)'):
    Workdir(tmp_path / inner).check()


@pytest.mark.parametrize('name', ['student', 'student/kd', 'student/kd/checkpoints',
                                  'student/kd/checkpoints/best', 'student/kd/variables'])
def test_a_file_in_the_place_of_a_folder_of_a_phase_is_refused(tmp_path, name):
  Workdir(tmp_path).check_phase('student/kd')
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_text('mine')
  with pytest.raises(errors.ConfigError, match=f'^--workdir: {tmp_path / name} is a file; choose'):
    Workdir(tmp_path).check_phase('student/kd')


def test_pipes_are_refused_but_in_hidden_folders(tmp_path):
  """Git has sockets and links in its folder."""
  (tmp_path / '.git').mkdir()
  os.mkfifo(tmp_path / '.git/pipe')
  (tmp_path / '.git/link').symlink_to(tmp_path)
  files.require_ordinary(tmp_path, '--workdir')
  (tmp_path / '.locks').mkdir()
  (tmp_path / '.locks/link').symlink_to(tmp_path)
  with pytest.raises(errors.ConfigError, match='link is a symbolic link'):
    files.require_ordinary(tmp_path, '--workdir')
  (tmp_path / '.locks/link').unlink()
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(errors.ConfigError, match='pipe is neither a file nor a folder'):
    files.require_ordinary(tmp_path, '--workdir')


@pytest.mark.parametrize('name', [
    'notes.txt', 'teacher.txt', '.lock', '.locks/student.kd', '.manifest.json.0.tmp', 'sweep.json',
    'net/net/seed3/student/kd/result.json', 'student/notes.txt', 'student/kd/failure.json'])
def test_what_a_run_does_not_write_is_left_alone(tmp_path, name):
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_text('mine')
  assert Workdir(tmp_path).written(report=True) == []


@pytest.mark.parametrize('name', ['job[1]', 'a*b', 'what?', 'a\\b'])
def test_a_folder_in_which_orbax_finds_no_checkpoint_is_refused(tmp_path, name):
  """Orbax takes its path for a pattern."""
  for path in (tmp_path / name, tmp_path / name / 'run'):
    with pytest.raises(errors.ConfigError) as raised:
      Workdir(path).check()
    assert str(raised.value) == (f'--workdir: {path} has one of the characters * ? [ \\ in its '
                                 'path, with which no checkpoint is found; choose another folder')
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize('name', ['a]b', 'a b', 'a%20b', '#1', '{x}', 'ä', "it's", '$HOME', '~'])
def test_other_characters_in_the_path_are_taken(tmp_path, name):
  state = {'params': {'w': np.ones(3)}}
  Workdir(tmp_path / name).check()
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
