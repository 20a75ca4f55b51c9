"""Sweeps through the entry point: the grid, what is shared, resumed, refused, and failures."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kdih import main
from kdih.data import source
from kdih.phases import pipeline
from kdih.sweep.jobs import Sweep
from kdih.sweep.resume import Checks
from kdih.sweep.run import Worker, failures
from tests.helpers.runs import ROOT, exported, read_config, tiny_command
from tests.helpers.slow import slow
from tests.helpers.sweeps import MODEL, NETS, PAIR, results, run


def files(workdir) -> dict[str, tuple[int, bytes]]:
  """{path: when it was written, and what}, of all files but locks."""
  return {str(path.relative_to(workdir)): (path.stat().st_mtime_ns, path.read_bytes())
          for path in pathlib.Path(workdir).rglob('*')
          if path.is_file() and '.lock' not in str(path)}


@pytest.fixture(scope='module')
def swept(tmp_path_factory, digits_dir):
  """The workdir of a sweep of two methods and two seeds. Tests must not change it."""
  workdir = tmp_path_factory.mktemp('swept')
  assert run(workdir, digits_dir, '--methods=ce,dih', '--seeds=1,2') == 0
  return workdir


@pytest.fixture
def copy(swept, tmp_path):
  """A copy of that workdir."""
  return shutil.copytree(swept, tmp_path / 'copy', copy_function=shutil.copy2)


def test_a_sweep_trains_one_teacher_and_every_combination(swept):
  assert results(swept) == {
      f'{NETS}.TinyNet/teacher/result.json', f'{NETS}.TinyNet/heads/result.json',
      *(f'{PAIR}/seed{seed}/student/{method}/result.json'
        for seed in (1, 2) for method in ('ce', 'dih'))}
  asked, = json.loads((swept / 'sweep.json').read_text())
  assert (asked['pairs'], asked['seeds']) == ([[MODEL, MODEL, ['ce', 'dih']]], [1, 2])


@pytest.mark.slow
def test_a_run_of_a_sweep_is_the_run_of_the_same_seed_alone(swept, tmp_path, digits_dir):
  teacher = swept / f'{NETS}.TinyNet/teacher/variables'
  heads = swept / f'{NETS}.TinyNet/heads/variables'
  main.run(read_config(
      tmp_path, digits_dir, '--config.seed=2', '--config.student.methods=dih',
      f'--config.teacher.variables={teacher}', f'--config.heads.variables={heads}'), tmp_path)
  alone, one = exported(tmp_path, 'student/dih'), exported(swept / PAIR / 'seed2', 'student/dih')
  other = exported(swept / PAIR / 'seed1', 'student/dih')
  for path, array in alone.items():
    np.testing.assert_array_equal(array, one[path])
  assert any((array != other[path]).any() for path, array in alone.items())


@pytest.mark.slow
def test_the_same_command_changes_no_file_and_another_adds_to_them(copy, digits_dir):
  before = files(copy)
  assert run(copy, digits_dir, '--methods=ce,dih', '--seeds=1,2') == 0
  assert files(copy) == before
  assert run(copy, digits_dir, '--methods=ce', '--seeds=3') == 0
  after = files(copy)
  folder = f'{PAIR}/seed3/'
  assert {path for path in before if after[path] != before[path]} == {'sweep.json'}
  assert all(path.startswith(folder) for path in set(after) - set(before))
  assert f'{folder}student/ce/result.json' in after
  first, second = json.loads(after['sweep.json'][1])
  assert [first] == json.loads(before['sweep.json'][1]) and second['seeds'] == [3]


@pytest.mark.slow
def test_a_finished_student_with_the_variables_of_another_is_refused(copy, digits_dir, capsys):
  one, other = (copy / PAIR / seed / 'student/ce/variables' for seed in ('seed1', 'seed2'))
  shutil.rmtree(one)
  shutil.copytree(other, one)
  before = files(copy)
  capsys.readouterr()
  assert run(copy, digits_dir, '--methods=ce,dih', '--seeds=1,2,3') == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f"kdih: --workdir: '{one}' does not hold the variables that ")
  assert files(copy) == before


@pytest.mark.slow
def test_a_job_is_logged_with_its_position_and_a_finished_sweep_in_one_line(
    copy, digits_dir, capsys):
  shutil.rmtree(copy / PAIR / 'seed2/student/ce')
  capsys.readouterr()
  for expected in ([f'sweep: {MODEL}/{MODEL}/ce/seed2 (5 of 6)'],
                   ['sweep: all 6 jobs were finished before']):
    assert run(copy, digits_dir, '--methods=ce,dih', '--seeds=1,2') == 0
    assert re.findall('^sweep: .*$', capsys.readouterr().err, re.MULTILINE) == expected


@pytest.mark.slow
def test_a_failure_is_isolated_and_listed(copy, digits_dir, capsys):
  assert run(copy, digits_dir, '--methods=kd,kd_matched', '--seeds=1',
             '--config.methods.kd.learning_rate=1e9') == 1
  error = capsys.readouterr().err
  assert f'failed: {MODEL}/{MODEL}/kd/seed1: ' in error
  assert error.endswith('kdih: 1 failed; the same command tries them again\n')
  folder = copy / PAIR / 'seed1/student'
  assert 'NotFiniteError' in json.loads((folder / 'kd/failure.json').read_text())['traceback']
  assert not (folder / 'kd/result.json').exists()
  assert (folder / 'kd_matched/result.json').exists()


def test_why_a_job_failed_is_printed_without_control_characters(
    tmp_path, digits_dir, capsys, monkeypatch):
  def fails(experiment):
    raise ValueError('a \x1b[31mred\x07 line')

  monkeypatch.setattr(pipeline, 'runner', lambda phase: fails)
  assert run(tmp_path, digits_dir, '--methods=ce', '--seeds=1') == 1
  shown = f'failed: {MODEL}/{MODEL}/ce/seed1: a \ufffd[31mred\ufffd line\n'
  assert shown in capsys.readouterr().err
  failure = json.loads((tmp_path / PAIR / 'seed1/student/ce/failure.json').read_text())
  assert failure['error'] == 'a \ufffd[31mred\ufffd line'


@pytest.mark.slow
def test_what_failed_earlier_is_tried_again_also_if_a_clock_was_ahead(tmp_path, digits_dir):
  folder = tmp_path / PAIR / 'seed1/student/ce'
  folder.mkdir(parents=True)
  failure = {'error': 'its machine is broken', 'time': time.time() + 1000}
  (folder / 'failure.json').write_text(json.dumps(failure))
  assert run(tmp_path, digits_dir, '--methods=ce', '--seeds=1') == 0
  assert (folder / 'result.json').exists() and not (folder / 'failure.json').exists()


@pytest.mark.parametrize('earlier', [None, {'error': 'its machine is broken', 'time': 2e9}])
def test_what_has_failed_in_another_process_meanwhile_is_not_tried_again(
    tmp_path, digits_dir, earlier):
  """The clock of the other process is behind."""
  folder = tmp_path / PAIR / 'seed1/student/ce'
  folder.mkdir(parents=True)
  if earlier:
    (folder / 'failure.json').write_text(json.dumps(earlier))
  sweep = Sweep(read_config(tmp_path, digits_dir, '--config.sweep.methods=ce',
                            '--config.sweep.seeds=1'), tmp_path)
  splits = source.open_splits(sweep.builder, sweep.config.data)
  worker = Worker(sweep, Checks(sweep), splits, failures(sweep))
  (folder / 'failure.json').write_text('{"error": "its machine is broken", "time": 1.0}')
  worker.work()
  assert worker.failures == {f'{MODEL}/{MODEL}/ce/seed1': 'its machine is broken'}
  assert [path.name for path in folder.iterdir()] == ['failure.json']


def test_a_teacher_that_another_sweep_has_copied_meanwhile_is_not_taken_for_the_own(
    tmp_path, finished, digits_dir):
  sweep = Sweep(read_config(
      tmp_path, digits_dir, '--config.sweep.methods=kd', '--config.sweep.seeds=1',
      f'--config.teacher.variables={finished}/teacher/variables'), tmp_path)
  splits, checks = source.open_splits(sweep.builder, sweep.config.data), Checks(sweep)
  checks.identify(splits)
  result = json.loads((finished / 'teacher/result.json').read_text())
  folder = tmp_path / PAIR.split('/')[0] / 'teacher'
  folder.mkdir(parents=True)
  (folder / 'result.json').write_text(json.dumps({**result, 'fingerprint': 'of the other'}))
  worker = Worker(sweep, checks, splits, failures(sweep))
  worker.work()
  (job, reason), = worker.failures.items()
  assert job == f'{MODEL}/{MODEL}/kd/seed1' and 'has changed since it was copied to' in reason
  assert not list(tmp_path.rglob('metrics.jsonl'))


@pytest.mark.slow
def test_a_teacher_that_fails_takes_only_its_pupils_along(swept, copy, digits_dir, capsys):
  pairs = f'{NETS}:Diverging:{MODEL},{MODEL}:{MODEL}'
  assert run(copy, digits_dir, '--methods=ce,dih', '--seeds=1', f'--pairs={pairs}') == 1
  failed = re.findall(r'^failed: (\S+): (.*)$', capsys.readouterr().err, re.MULTILINE)
  teacher = f'{NETS}:Diverging/teacher'
  assert [name for name, _ in failed] == [
      teacher, f'{NETS}:Diverging/heads', f'{NETS}:Diverging/{MODEL}/dih/seed1']
  assert failed[0][1].startswith('teacher: the loss is')
  assert {reason for _, reason in failed[1:]} == {f'{teacher} failed'}
  assert (copy / f'{NETS}.Diverging/teacher/failure.json').exists()
  assert results(copy) - results(swept) == {
      f'{NETS}.Diverging/{NETS}.TinyNet/seed1/student/ce/result.json'}


@pytest.mark.parametrize('overrides', [
    ('--methods=ce', '--seeds=1'),
    ('--methods=ce', '--seeds=3'),
    slow(('--methods=ce', '--seeds=3', f'--students={NETS}:NoTaps')),
    slow(('--methods=ce', '--seeds=3', f'--config.teacher.name={NETS}:Diverging')),
])
def test_a_workdir_of_another_config_is_refused(swept, digits_dir, capsys, overrides):
  before = results(swept)
  setting = '--config.student.train.weight_decay=0.1'
  assert run(swept, digits_dir, *overrides, setting) == 2
  error = capsys.readouterr().err
  assert 'config.student.train.weight_decay (was 0.0005, is 0.1)' in error
  assert error.count('\n') == 1
  assert run(swept, digits_dir, *overrides, '--dry_run') == 0
  assert results(swept) == before


def test_the_options_of_a_method_are_those_of_its_runs_with_other_seeds(swept, digits_dir, capsys):
  options = '--config.methods.dih.temperature=3.0'
  assert run(swept, digits_dir, '--methods=dih', '--seeds=3', options) == 2
  assert 'config.methods.dih.temperature (was 5.0, is 3.0)' in capsys.readouterr().err


@pytest.mark.parametrize('overrides, expected', [
    (('--methods=ce,dhi',), "config.sweep.methods: unknown 'dhi'; did you mean 'dih'?"),
    (('--methods=ce,ce',), "config.sweep.methods: is ('ce', 'ce'); it must hold every value only "),
    (('--students=resnet8,resnet8',), "config.sweep.students: is ('resnet8', 'resnet8'); it "),
    (('--methods=',), '--methods: has no value; write --methods=VALUE, or remove the flag'),
    (('--seeds',), 'config.sweep.seeds: has no value; write --config.sweep.seeds=VALUE'),
    (('--seeds', '-1'), 'config.sweep.seeds: is -1; it must be a whole number from 0 to 2^32 - 1'),
    (('--seeds=-1',), 'config.sweep.seeds: is -1; it must be a whole number from 0 to 2^32 - 1'),
    (('--seeds=x',), "config.sweep.seeds: is 'x'; it must be a whole number from 0 to 2^32 - 1"),
    (('--students=resnet9',), "config.student.name: unknown 'resnet9'; did you mean"),
    (('--pairs=resnet8',), "config.sweep.pairs: 'resnet8' is not 'teacher:student'"),
    (('--pairs=resnet8:resnet8,resnet8:resnet9',), "config.student.name: unknown 'resnet9'; did"),
    ((f'--pairs={MODEL}:resnet8,resnet8:{MODEL}x',), f"config.student.name: {NETS!r} has"),
    (('--students=resnet8', '--pairs=resnet8:resnet8'),
     'config.sweep.students: cannot be set together with config.sweep.pairs'),
    (('--config.teacher.variables=/nowhere',), 'config.teacher.variables: no exported variables'),
    (('--dry_run', '--config.student.train.global_batch_size=30'),
     'config.student.train.global_batch_size: 30 images cannot be divided equally over 4 devices'),
    (('--methods=sp', f'--students={NETS}:NoTaps'),
     f'config.methods.sp: does not fit the teacher {NETS}:TinyNet and the student {NETS}:NoTaps: '),
])
def test_bad_input_is_one_line_before_anything_is_written(
    tmp_path, digits_dir, capsys, overrides, expected):
  assert run(tmp_path / 'w', digits_dir, *overrides) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count('\n') == 1, error
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('loader', ['memory', 'streaming'])
def test_images_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path, digits_dir, capsys, loader):
  assert run(tmp_path / 'w', digits_dir, '--methods=ce', '--seeds=1',
             '--config.data.train_split=train[:1]', '--config.data.validation_fraction=0',
             f'--config.data.loader={loader}') == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith('kdih: config.data.train_split: all 1 images are of one class')
  assert not (tmp_path / 'w').exists()


def test_a_workdir_that_cannot_be_made_is_one_line(digits_dir, capsys):
  assert run('/proc/kdih', digits_dir, '--methods=ce', '--seeds=1') == 2
  *progress, line = capsys.readouterr().err.splitlines()
  assert line.startswith('kdih: --workdir: /proc/kdih cannot be made')
  assert all(text.startswith('data: ') for text in progress)


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_and_said(tmp_path, digits_dir, capsys):
  assert run(tmp_path, digits_dir, '--methods=ce,sp', f'--students={NETS}:NoTaps',
             '--seeds=1') == 0
  assert 'left out: config.methods.sp: does not fit the teacher' in capsys.readouterr().err
  assert [path for path in results(tmp_path) if 'student' in path] == [
      f'{NETS}.TinyNet/{NETS}.NoTaps/seed1/student/ce/result.json']


def start(workdir, data_dir) -> subprocess.Popen:
  arguments = tiny_command(workdir, data_dir, '--methods=ce,dih', '--seeds=1,2')
  return subprocess.Popen([sys.executable, '-m', 'kdih.sweep', *arguments[1:]],
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)


def read_to(process: subprocess.Popen, text: str) -> list[str]:
  """The lines that the process says, up to one that begins with `text`."""
  said = []
  for line in process.stderr:
    said.append(line)
    if line.startswith(text):
      return said
  raise AssertionError(f'it ended without {text!r}: {"".join(said)}')


def kill(process: subprocess.Popen) -> None:
  process.send_signal(signal.SIGKILL)
  process.stderr.close()
  assert process.wait() == -signal.SIGKILL


def taken(said: str) -> list[str]:
  """The jobs that were begun, sorted."""
  return sorted(re.findall(r'^sweep: (\S+) \(\d of 6\)$', said, re.MULTILINE))


JOBS = sorted([f'{MODEL}/teacher', f'{MODEL}/heads', *(
    f'{MODEL}/{MODEL}/{method}/seed{seed}' for method in ('ce', 'dih') for seed in (1, 2))])


@pytest.mark.slow
def test_processes_that_share_a_workdir_take_each_job_once(tmp_path, digits_dir):
  processes = [start(tmp_path, digits_dir) for _ in range(3)]
  said = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0], said
  assert taken(''.join(said)) == JOBS
  assert len(results(tmp_path)) == 6
  for manifest in (*tmp_path.glob('*/manifest.json'), *tmp_path.glob('*/*/seed*/manifest.json')):
    command = json.loads(manifest.read_text())['command']
    assert command.startswith('python -m kdih.sweep --config=')


@pytest.mark.slow
def test_what_a_process_was_at_is_waited_for_and_taken_up_when_it_dies(tmp_path, digits_dir):
  first = start(tmp_path, digits_dir)
  read_to(first, 'teacher: step 2 validation')
  first.send_signal(signal.SIGSTOP)
  second = start(tmp_path, digits_dir)
  assert not taken(''.join(read_to(second, 'sweep: waits for jobs of other processes')))
  kill(first)
  said = second.communicate(timeout=300)[1]
  assert second.returncode == 0, said
  assert taken(said) == JOBS
