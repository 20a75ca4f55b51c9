"""Who may work in the folder of a run at the same time."""
import errno
import fcntl

import numpy as np
import pytest

from kdih import errors
from kdih.runtime import files
from kdih.runtime.workdir import Workdir
from kdih.training import orbax_files


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
