"""What happens to a run when the machine or the numbers fail it: each for real."""
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from kdih import errors, main
from kdih.data import sampling
from kdih.runtime import digests, preemption, program
from kdih.sweep import __main__ as sweep
from kdih.training import metric_log
from tests.helpers.damage import contents
from tests.helpers.made_workdirs import single
from tests.helpers.runs import read_config, tiny_command
from tests.helpers.started import (
  RESUME,
  assert_bit_identical,
  finish,
  listening,
  start,
  wait_for_step,
)

ONLY_TEACHER = '--config.phases=teacher'


def run_alone(workdir, digits_dir, *overrides, steps):
  """(exit code, stdout, stderr) of one process on one device."""
  return finish(start(workdir, digits_dir, *overrides, processes=1, steps=steps))[0]


@pytest.mark.slow
def test_sigterm_saves_at_once_and_the_same_command_goes_on(
    tmp_path, digits_dir, capsys, monkeypatch):
  """In the middle of an epoch, between two evaluations, with the memory bank of CRD."""
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  commands = [tiny_command(
      workdir, digits_dir, '--config.student.methods=crd', '--config.data.loader=streaming',
      '--config.student.train.evaluate_every=1000', '--config.student.train.length=23',
      '--config.log_every_steps=1') for workdir in (whole, cut)]
  assert main.main(commands[0]) == 0
  with monkeypatch.context() as patch:
    patch.setattr(sampling, 'train_batches', until_sigterm(sampling.train_batches, step=17))
    assert main.main(commands[1]) == RESUME
  saved = re.fullmatch(
      r'kdih: student/crd: asked to stop, and saved at step (\d+); .*',
      capsys.readouterr().err.splitlines()[-1])[1]
  assert 6 < int(saved) < 23
  assert (cut / 'student/crd/checkpoints' / saved).is_dir()
  assert main.main(commands[1]) == 0
  assert_bit_identical(cut, whole, ('teacher', 'student/crd'))


def until_sigterm(train_batches, step: int):
  """Returns `train_batches` that sends SIGTERM when a step's batch is drawn, somewhat ahead."""
  def batches(subset, batch_size, seed, start, stop):
    for at, batch in enumerate(train_batches(subset, batch_size, seed, start, stop), start):
      if at == step:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  return batches


@pytest.mark.slow
def test_sigterm_is_never_taken_for_damage(tmp_path, digits_dir, finished, monkeypatch, capsys):
  """At each moment at which content is compared with a digest, one after the other."""
  digest_of, calls, kill_at = digests.of, 0, 0

  def stopped(*args):
    nonlocal calls
    calls += 1
    found = digest_of(*args)
    if calls == kill_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return found

  monkeypatch.setattr(digests, 'of', stopped)
  command, codes = tiny_command(tmp_path, digits_dir, ONLY_TEACHER), []
  for kill_at in itertools.count(1, 3):
    calls = 0
    codes.append(main.main(command))
    if calls < kill_at:
      break
    if codes[-1] == 0:  # In the last moments of all. Then there is something to resume, again.
      (tmp_path / 'teacher' / 'result.json').unlink()
  assert set(codes) == {0, RESUME} and codes[-1] == 0 and codes.count(RESUME) > 2
  assert 'damaged' not in (said := capsys.readouterr().err) and 'lost' not in said
  assert_bit_identical(tmp_path, finished, ('teacher',))


def test_sigterm_is_not_taken_for_an_error_of_the_users_code():
  with (pytest.raises(errors.PreemptedError), listening(),
        errors.of_users_code('config.teacher.name: ')):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_sigterm_outside_of_training_ends_the_run_at_once():
  with (pytest.raises(errors.PreemptedError, match='run the same command again to resume'),
        listening()):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_sigterm_in_training_waits_for_its_end_also_if_that_is_an_error():
  reached = []
  for error in (None, errors.NotFiniteError('too large')):
    with pytest.raises(errors.PreemptedError) as raised, listening(), preemption.training():
      os.kill(os.getpid(), signal.SIGTERM)
      reached.append(preemption.reached())
      if error:
        raise error
    assert raised.value.__cause__ is error
  assert reached == [True, True]


def test_an_error_that_a_library_raises_for_sigterm_is_none():
  with pytest.raises(errors.PreemptedError), listening():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
    except errors.PreemptedError:
      raise ValueError('the data is damaged') from None


@pytest.mark.parametrize('moment', [0, 1])
def test_a_second_sigterm_is_ignored_and_the_next_command_knows_of_none(moment):
  def body(_):
    with preemption.listening():
      try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
      finally:
        if moment == 0:
          os.kill(os.getpid(), signal.SIGTERM)

  class Stderr(io.StringIO):
    def write(self, text):
      if moment == 1:  # While the line of the error is written.
        os.kill(os.getpid(), signal.SIGTERM)
      return super().write(text)

  with contextlib.redirect_stderr(Stderr()) as said:
    assert program.main(['kdih'], '', body) == RESUME
  assert said.getvalue() == 'kdih: stopped by SIGTERM; run the same command again to resume\n'
  assert not preemption.reached()
  with preemption.training():
    pass


@pytest.mark.slow
def test_a_second_run_in_the_same_workdir_is_refused(tmp_path, digits_dir):
  [first] = start(tmp_path, digits_dir, ONLY_TEACHER, processes=1, steps=100_000)
  wait_for_step(tmp_path, 'teacher', 2)
  code, _, said = run_alone(tmp_path, digits_dir, ONLY_TEACHER, steps=100_000)
  assert code == 2
  assert said.splitlines()[-1].startswith('kdih: --workdir: another process is running in ')
  first.send_signal(signal.SIGTERM)
  assert finish([first])[0][0] == RESUME  # It was not disturbed.


@pytest.mark.slow
def test_a_loss_that_explodes_goes_back_and_lowers_the_learning_rate(tmp_path, digits_dir, capsys):
  config = read_config(tmp_path, digits_dir, ONLY_TEACHER, '--config.on_nan=rewind',
                       '--config.max_rewinds=60', '--config.teacher.train.learning_rate=1e9')
  results = main.run(config, tmp_path)
  said = [line for line in capsys.readouterr().err.splitlines() if 'back to step' in line]
  assert results['teacher']['rewinds'] == len(said) > 1
  assert said[0].endswith('with the learning rate x 0.5')
  assert said[-1].endswith(f'x {2.0**-len(said):g}')
  assert any('back to step 0 ' in line for line in said)  # The first checkpoint was no better.
  steps = [line['step'] for line in metric_log.read_metrics(tmp_path / 'teacher' / 'metrics.jsonl')
           if 'val/top1' in line]
  assert steps == [2, 4, 6]


@pytest.mark.parametrize(('options', 'rewinds'), [
    ((), 0), (('--config.on_nan=rewind', '--config.max_rewinds=2'), 2)])
def test_a_loss_that_stays_infinite_stops_the_run(tmp_path, digits_dir, capsys, options, rewinds):
  code = main.main(tiny_command(
      tmp_path, digits_dir, ONLY_TEACHER,
      '--config.teacher.name=tests.helpers.tiny_nets:Diverging', *options))
  *said, last = capsys.readouterr().err.splitlines()
  assert code == 1
  assert len([line for line in said if 'back to step' in line]) == rewinds
  assert last.startswith('kdih: teacher: the loss is ') and ' at step ' in last
  assert 'checkpoint' in last and 'config.on_nan=rewind' in last
  assert not (tmp_path / 'teacher' / 'result.json').exists()


@pytest.mark.slow
def test_a_workdir_that_is_deleted_ends_the_run_in_one_line(tmp_path, digits_dir):
  workdir = tmp_path / 'w'
  [process] = start(workdir, digits_dir, ONLY_TEACHER, processes=1, steps=100_000)
  wait_for_step(workdir, 'teacher', 4)
  shutil.rmtree(workdir, ignore_errors=True)
  [(code, _, said)] = finish([process])
  assert code == 1
  assert said.splitlines()[-1].startswith('kdih: ') and 'Traceback' not in said
  assert not (workdir / 'teacher' / 'result.json').exists()


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_and_it_goes_on_when_there_is_room(
    tmp_path, digits_dir, finished):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('may not mount a file system')
  try:
    code, _, said = run_alone(disk / 'w', digits_dir, steps=6)
    assert code == 1
    assert said.splitlines()[-1].startswith('kdih: ') and 'No space left' in said
    assert 'Traceback' not in said
    subprocess.run(['mount', '-o', 'remount,size=20m', str(disk)], check=True)
    assert run_alone(disk / 'w', digits_dir, steps=6)[0] == 0
    assert json.loads((disk / 'w' / 'teacher' / 'result.json').read_text())['steps'] == 6
  finally:
    subprocess.run(['umount', str(disk)], check=True)


def test_a_read_only_workdir_is_refused(tmp_path, digits_dir, capsys):
  mount = ['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(tmp_path)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('may not mount a file system')
  try:
    assert main.main(tiny_command(tmp_path / 'w', digits_dir)) == 2
    assert 'cannot be written to; choose another folder' in capsys.readouterr().err
  finally:
    subprocess.run(['umount', str(tmp_path)], check=True)


@pytest.mark.parametrize('program', [main, sweep])
@pytest.mark.parametrize('inner', ['student', 'teacher/checkpoints'])
def test_a_workdir_in_a_phase_of_another_run_is_refused(
    tmp_path, digits_dir, capsys, program, inner):
  workdir = single(tmp_path / 'w', 'ce')
  before = contents(workdir)
  assert program.main(tiny_command(workdir / inner, digits_dir)) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line == (f'kdih: --workdir: {workdir / inner} lies in the folder '
                  f'{inner.split("/")[0]!r} of the run in {workdir}, which could not be resumed '
                  'then; choose another folder')
  assert contents(workdir) == before


def test_a_lock_that_cannot_be_taken_is_refused(tmp_path, digits_dir, capsys):
  (tmp_path / '.lock').mkdir()
  assert main.main(tiny_command(tmp_path, digits_dir)) == 2
  assert capsys.readouterr().err.splitlines()[-1].startswith(
      f'kdih: --workdir: {tmp_path} cannot be locked (')
  assert [path.name for path in tmp_path.iterdir()] == ['.lock']


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, digits_dir, finished, monkeypatch):
  now = iter(range(10**9, 0, -3600))
  monkeypatch.setattr(time, 'time', lambda: float(next(now)))
  results = main.run(read_config(tmp_path, digits_dir, ONLY_TEACHER), tmp_path)
  assert results['teacher']['seconds'] > 0
  assert_bit_identical(tmp_path, finished, ('teacher',))


@pytest.mark.parametrize('damage', [
    lambda text: text[:len(text) // 2], lambda text: '[' * 20_000, lambda text: '[1, 2]',
    lambda text: text.replace('{', '{"huge": 1e999, ', 1),
    lambda text: text.replace('"fingerprint"', '"other"').replace('"config"', '"other"')],
    ids=['truncated', 'deep', 'another type', 'huge number', 'missing field'])
@pytest.mark.parametrize('name', ['manifest.json', 'teacher/result.json', 'heads/result.json',
                                  'student/ce/result.json', 'results.json'])
def test_a_damaged_file_of_the_run_is_named_and_nothing_is_overwritten(
    tmp_path, finished, digits_dir, capsys, name, damage):
  workdir = tmp_path / 'w'
  shutil.copytree(finished, workdir)
  (workdir / name).write_text(damage((workdir / name).read_text()))
  before = contents(workdir)
  code = main.main(tiny_command(workdir, digits_dir))
  *progress, line = capsys.readouterr().err.splitlines()
  assert code == 2 and all(text.startswith('data: ') for text in progress)
  assert line.startswith(f'kdih: {workdir / name} is damaged (')
  assert line.endswith('; restore it from a copy, or remove it to have it made again')
  assert contents(workdir) == before
