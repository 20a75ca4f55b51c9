"""Several processes that run as one, each with some of the devices."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from kdih import main
from kdih.config import fields
from kdih.runtime import processes as processes_lib
from kdih.training import metric_log
from tests.helpers.runs import ROOT, exported, tiny_command
from tests.helpers.started import RESUME, finish, free_port, start, wait_for_step

PHASES = ('teacher', 'heads', 'student/ce', 'student/kd', 'student/dih')


def run(*args, **kwargs) -> list[tuple[int, str, str]]:
  ended = finish(start(*args, **kwargs))
  assert [code for code, _, _ in ended] == [0] * len(ended), ended
  return ended


def assert_same(workdir, other, phases, tolerance=1e-5):
  for phase in phases:
    one, two = exported(workdir, phase), exported(other, phase)
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_two_processes_end_with_the_variables_of_one(tmp_path, finished, digits_dir):
  """Every phase; only the first process speaks, and writes."""
  (_, table, _), (_, silent, whispered) = run(tmp_path, digits_dir)
  assert_same(tmp_path, finished, PHASES)
  assert 'student dih' in table and 'teacher' not in silent  # Gloo speaks in both.
  assert 'epoch' not in whispered and 'validation' not in whispered
  names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob('*')}
  assert names == {path.relative_to(finished).parts[0] for path in finished.rglob('*')}
  for phase in PHASES:
    assert len(list((tmp_path / phase).glob('events.out.tfevents.*'))) == 1
    steps = [line['step'] for line in metric_log.read_metrics(tmp_path / phase / 'metrics.jsonl')
             if 'val/top1' in line]
    assert steps == [2, 4, 6]


@pytest.mark.slow
def test_two_processes_that_stream_end_with_the_variables_of_one(tmp_path, finished, digits_dir):
  run(tmp_path, digits_dir, '--config.phases=teacher', '--config.data.loader=streaming')
  assert_same(tmp_path, finished, ('teacher',))


@pytest.mark.slow
def test_the_processes_of_a_slurm_job_find_each_other(tmp_path, finished, digits_dir):
  """By what Slurm tells each task; JAX takes a port by the number of the job."""
  job = {'SLURM_JOB_ID': str(random.randrange(10**6)), 'SLURM_STEP_NODELIST': 'localhost',
         'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_NODES': '1'}
  command = tiny_command(tmp_path, digits_dir, '--config.phases=teacher')[1:]
  tasks = [subprocess.Popen(
      [sys.executable, '-m', 'kdih.main', *command], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, env={
          **os.environ, **job, 'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '2',
          'SLURM_PROCID': str(number), 'SLURM_LOCALID': str(number)}) for number in range(2)]
  ended = finish(tasks)
  assert [code for code, _, _ in ended] == [0, 0], ended
  assert 'teacher' in ended[0][1] and 'teacher' not in ended[1][1]
  assert_same(tmp_path, finished, ('teacher',))


@pytest.mark.slow
def test_evaluation_is_exact_with_uneven_shares(tmp_path, finished, digits_dir):
  """43 test images on four devices, and on one; a loss is a sum, of which the order rounds."""
  found = []
  for number, processes in enumerate((2, 1)):
    workdir = tmp_path / str(number)
    shutil.copytree(finished / 'teacher' / 'variables', tmp_path / f'v{number}')
    run(workdir, digits_dir, '--config.phases=teacher', '--config.data.test_split=test[:43]',
        f'--config.teacher.variables={tmp_path / f"v{number}"}', processes=processes)
    found.append(json.loads((workdir / 'teacher' / 'result.json').read_text()))
  for split in ('val', 'test_last', 'test_best_val'):
    one, other = (dict(result[split]) for result in found)
    assert one.pop('loss') == pytest.approx(other.pop('loss'), rel=1e-6)
    assert one == other
  assert found[0]['fingerprint'] == found[1]['fingerprint']


@pytest.fixture(scope='module')
def eighty_steps(tmp_path_factory, digits_dir):
  """The workdir of a teacher that two processes have trained for eighty steps."""
  whole = tmp_path_factory.mktemp('eighty')
  run(whole, digits_dir, '--config.phases=teacher', steps=80)
  return whole


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), [(2, 1), (1, 2)])
def test_a_checkpoint_is_gone_on_from_by_another_number_of_processes(
    tmp_path, digits_dir, eighty_steps, before, after):
  cut = tmp_path / 'cut'
  started = start(cut, digits_dir, '--config.phases=teacher', processes=before, steps=80)
  wait_for_step(cut, 'teacher', 8)
  for process in started:
    process.send_signal(signal.SIGKILL)
  finish(started)
  assert not (cut / 'teacher' / 'result.json').exists()
  run(cut, digits_dir, '--config.phases=teacher', processes=after, steps=80)
  assert_same(cut, eighty_steps, ('teacher',))


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_the_others_stop_with_a_message_when_one_dies(tmp_path, digits_dir, victim):
  started = start(tmp_path, digits_dir, '--config.phases=teacher',
                  '--config.teacher.train.evaluate_every=100000', steps=100_000)
  wait_for_step(tmp_path, 'teacher', 4)
  started[victim].send_signal(signal.SIGKILL)
  (code, _, said) = finish(started)[1 - victim]
  ours = (code == RESUME and 'kdih: another process ended' in said
          and 'start all processes again' in said)
  # JAX may be the first to notice.
  assert ours or (code == -signal.SIGABRT and 'another task died' in said)


@pytest.mark.slow
def test_all_save_at_one_step_when_one_is_asked_to_stop(tmp_path, digits_dir, eighty_steps):
  cut = tmp_path / 'cut'
  started = start(cut, digits_dir, '--config.phases=teacher', steps=80)
  wait_for_step(cut, 'teacher', 4)
  started[1].send_signal(signal.SIGTERM)
  ended = finish(started)
  assert [code for code, _, _ in ended] == [RESUME] * 2
  assert 'teacher: asked to stop, and saved at step' in ended[0][2]
  run(cut, digits_dir, '--config.phases=teacher', steps=80)
  assert_same(cut, eighty_steps, ('teacher',), tolerance=0.0)


@pytest.mark.parametrize(('flags', 'words'), [
    (('--coordinator=here',), '--coordinator: '),
    (('--coordinator=here:\N{ARABIC-INDIC DIGIT THREE}',), '--coordinator: '),
    (('--coordinator=here:1', '--num_processes=0'),
     'config.distributed.num_processes: is 0; it must be a whole number from 1 to 100000'),
    (('--coordinator=here:1', '--num_processes=2', '--process_id=2'), 'from 0 to 1')])
def test_processes_that_are_named_wrongly_are_refused(tmp_path, capsys, digits_dir, flags, words):
  workdir = tmp_path / 'w'
  assert main.main(tiny_command(workdir, digits_dir, *flags)) == 2
  line = capsys.readouterr().err
  assert words in line and line.count('\n') == 1
  assert not workdir.exists()


@pytest.mark.parametrize(('variable', 'value'), [
    ('SLURM_NTASKS', 'abc'), ('SLURM_NTASKS', ''), ('SLURM_STEP_NUM_TASKS', '2x')])
def test_a_wrong_number_of_tasks_is_refused(
    tmp_path, capsys, monkeypatch, digits_dir, variable, value):
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'localhost')
  monkeypatch.setenv(variable, value)
  assert main.main(tiny_command(tmp_path / 'w', digits_dir)) == 2
  line = capsys.readouterr().err
  assert line.startswith(f'kdih: {variable}: {value!r} is not ') and line.count('\n') == 1


def test_a_shell_in_an_allocation_of_several_tasks_is_one_process(monkeypatch):
  for name, value in {'STEP_NODELIST': 'localhost', 'NTASKS': '8', 'STEP_NUM_TASKS': '1'}.items():
    monkeypatch.setenv(f'SLURM_{name}', value)
  processes_lib.join(fields.base().distributed)
  assert not processes_lib.joined()


@pytest.mark.slow
@pytest.mark.parametrize(('flags', 'job'), [
    (['--coordinator=localhost:{}', '--num_processes=2'], {}),
    (['--coordinator=localhost:{}', '--num_processes=2', '--process_id=1'], {}),
    ([], {'NTASKS': '2', 'PROCID': '0'}), ([], {'NTASKS': '2', 'PROCID': '1'})])
def test_a_process_that_waits_in_vain_says_so(tmp_path, digits_dir, flags, job):
  job = job and {'JOB_ID': str(random.randrange(10**6)), 'STEP_NODELIST': 'localhost',
                 'LOCALID': '0', **job}
  command = tiny_command(tmp_path / 'w', digits_dir, '--config.distributed.timeout=3', '-v',
                         *(flag.format(free_port()) for flag in flags))
  done = subprocess.run([sys.executable, '-m', 'kdih.main', *command[1:]], check=False,
                        capture_output=True, text=True, timeout=120,
                        env={**os.environ, 'PYTHONPATH': str(ROOT),
                             **{f'SLURM_{name}': value for name, value in job.items()}})
  assert done.returncode == 2
  assert 'distributed: waiting up to 3 s for the other processes' in done.stderr
  assert done.stderr.splitlines()[-1].startswith(
      'kdih: config.distributed.timeout: the other processes did not come within 3 s; ')
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_a_slurm_job_that_tells_too_little_is_refused(tmp_path, digits_dir):
  command = tiny_command(tmp_path / 'w', digits_dir)
  done = subprocess.run([sys.executable, '-m', 'kdih.main', *command[1:]], check=False,
                        capture_output=True, text=True, timeout=120,
                        env={**os.environ, 'PYTHONPATH': str(ROOT), 'SLURM_NTASKS': '2',
                             'SLURM_STEP_NODELIST': 'localhost'})
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('kdih: config.distributed: ')


@pytest.mark.slow
@pytest.mark.parametrize(('module', 'variable', 'value', 'start'), [
    ('main', 'JAX_PLATFORMS', 'cuda', "JAX_PLATFORMS: is 'cuda', and JAX finds no devices ("),
    ('sweep', 'JAX_PLATFORMS', 'nonsense',
     "JAX_PLATFORMS: is 'nonsense', and JAX finds no devices ("),
    ('main', 'JAX_NUM_CPU_DEVICES', '0', "JAX_PLATFORMS: is 'cpu', and JAX finds no devices ("),
    ('sweep', 'JAX_ENABLE_X64', 'maybe', 'jax: cannot be imported (')])
def test_variables_that_jax_refuses(tmp_path, digits_dir, module, variable, value, start):
  command = tiny_command(tmp_path / 'w', digits_dir)
  done = subprocess.run([sys.executable, '-m', f'kdih.{module}', *command[1:]], check=False,
                        capture_output=True, text=True, timeout=120,
                        env={**os.environ, 'PYTHONPATH': str(ROOT), variable: value})
  assert done.returncode == 2
  assert done.stderr.startswith(f'kdih: {start}') and done.stderr.count('\n') == 1
  assert not (tmp_path / 'w').exists()
