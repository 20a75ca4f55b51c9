"""Launch scripts: shellcheck, missing settings, Slurm, plain ssh hosts."""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.launching import (
  AWKWARD,
  LAUNCH,
  calls,
  environment,
  put,
  put_python,
  run,
  wait_until,
)
from tests.helpers.runs import ROOT, exported, tiny_command

SCRIPTS = sorted(LAUNCH.rglob('*.sh'))
MULTIHOST, SLURM = LAUNCH / 'multihost.sh', LAUNCH / 'slurm.sh'


@pytest.mark.skipif(shutil.which('shellcheck') is None, reason='needs shellcheck')
def test_shellcheck_finds_nothing():
  done = subprocess.run(['shellcheck', '-x', *SCRIPTS], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout
  assert len(SCRIPTS) >= 6


GIVEN = {'PROJECT': 'p', 'ZONE': 'z', 'ACCELERATOR': 'v5litepod-8'}


@pytest.mark.parametrize(('command', 'changed', 'words'), [
    ('tpu_vm.sh', {}, 'usage: '),
    ('tpu_vm.sh crate', {}, 'usage: '),
    ('tpu_vm.sh delete', {'PROJECT': ''}, 'PROJECT: is not set'),
    ('tpu_vm.sh delete', {'ZONE': ''}, 'ZONE: is not set'),
    ('tpu_vm.sh create', {'ACCELERATOR': ''}, 'ACCELERATOR: is not set'),
    ('tpu_vm.sh create', {'SPOT': 'true'}, "SPOT: is 'true'"),
    ('tpu_vm.sh run', {}, 'run: has no flags'),
    ('tpu_vm.sh resume', {}, 'resume: no run was started'),
    ('babysit.sh', {'PROJECT': ''}, 'PROJECT: is not set'),
    ('babysit.sh', {'ZONE': ''}, 'ZONE: is not set'),
    ('babysit.sh', {'ACCELERATOR': ''}, 'ACCELERATOR: is not set'),
    ('babysit.sh --workdir=runs/x', {}, '--workdir: must outlive'),
    ('babysit.sh --config=x.py', {}, '--workdir: must outlive'),
    ('multihost.sh', {}, 'usage: '),
    ('multihost.sh hosts', {}, 'usage: '),
    ('multihost.sh /none python', {}, 'HOSTFILE: /none cannot be read'),
    ('multihost.sh /dev/null python', {}, 'HOSTFILE: /dev/null names no host'),
    ('gpu/measure.sh', {}, 'usage: '),
    ('slurm.sh', {'SLURM_JOB_ID': '5'}, 'usage: '),
    ('slurm.sh python', {}, 'usage: ')])
def test_a_missing_setting_is_one_line_and_nothing_is_started(tmp_path, command, changed, words):
  for name in ('gcloud', 'ssh', 'srun', 'scontrol'):
    put(tmp_path / 'bin', name, f'echo "$0" >>{tmp_path}/called')
  script, *arguments = command.split()
  done = run(LAUNCH / script, *arguments, env=environment(tmp_path, **{**GIVEN, **changed}))
  assert done.returncode == 2
  assert words in done.stderr and done.stderr.count('\n') == 1
  assert not (tmp_path / 'called').exists()


@pytest.fixture
def slurm(tmp_path):
  """Runs slurm.sh as a job: (exit code, stderr, calls)."""
  put_python(tmp_path / 'bin', 'srun')
  put(tmp_path / 'bin', 'scontrol', f'echo "[\\"$1\\", \\"$2\\"]" >>{tmp_path}/calls')

  def submit(*command: str, **settings: str):
    done = run(SLURM, *command, env=environment(
        tmp_path, SLURM_JOB_ID='5', SLURM_CPUS_PER_TASK='8', CALLS=str(tmp_path / 'calls'),
        **{'TASKS': '2', **settings}))
    return done, calls(tmp_path / 'calls')

  return submit


def test_slurm_runs_the_command_in_each_task(slurm, tmp_path):
  done, (srun,) = slurm('sh', '-c', 'printf "%s|" "$@" >$0$SLURM_PROCID', f'{tmp_path}/task',
                        *AWKWARD)
  assert done.returncode == 0
  assert srun[1:4] == ['--kill-on-bad-exit=0', '--cpus-per-task=8', 'bash']
  for number in range(2):
    assert (tmp_path / f'task{number}').read_text() == ''.join(f'{a}|' for a in AWKWARD)


def test_slurm_queues_a_job_again_that_was_asked_to_stop(slurm):
  done, (_, *further) = slurm('sh', '-c', 'exit 75')
  assert done.returncode == 0
  assert further == [['requeue', '5']]


@pytest.mark.parametrize(('codes', 'code'), [
    ((0, 1), 1), ((2, 75), 2), ((1, 75), 1), ((137, 75), 137)])
def test_slurm_does_not_queue_a_failure_again(slurm, codes, code):
  """75 is larger than 1 and 2, and srun returns the largest."""
  done, (_, *further) = slurm('sh', '-c', f'exit $((SLURM_PROCID ? {codes[1]} : {codes[0]}))')
  assert done.returncode == code
  assert not further


def test_slurm_stops_in_the_end(slurm):
  done, (_, *further) = slurm('sh', '-c', 'exit 75', SLURM_RESTART_COUNT='3', RESTARTS='3')
  assert done.returncode == 75
  assert not further and 'submit it again' in done.stderr


def test_slurm_waits_for_tasks_that_save_when_all_get_the_signal(tmp_path, slurm):
  """As of --signal and of pre-emption: the job script and each process of its tasks."""
  program = 'trap "sleep .3; touch saved; exit 75" TERM; touch up; while :; do sleep .05; done'
  job = subprocess.Popen(
      [SLURM, 'sh', '-c', program], start_new_session=True, cwd=tmp_path, env=environment(
          tmp_path, SLURM_JOB_ID='5', CALLS=str(tmp_path / 'calls'), TASKS='1'))
  wait_until((tmp_path / 'up').exists)
  os.killpg(job.pid, signal.SIGTERM)
  assert job.wait(timeout=30) == 0
  assert (tmp_path / 'saved').exists()
  assert calls(tmp_path / 'calls')[1:] == [['requeue', '5']]


@pytest.fixture
def hosts(tmp_path):
  """Two hosts, which are folders of one stand-in: ssh runs the command where it is."""
  put(tmp_path / 'bin', 'ssh',
      f'printf "%s\\n" "$*" | head -n 1 >>{tmp_path}/calls; for c; do :; done; exec bash -c "$c"')
  (tmp_path / 'hosts').write_text('# two\nme@127.0.0.1  # the first\n\nlocalhost\n')
  return str(tmp_path / 'hosts')


def start(tmp_path, hosts, program, **settings) -> subprocess.Popen[str]:
  return subprocess.Popen([MULTIHOST, hosts, 'sh', '-c', program, 'x'], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          cwd=tmp_path, env=environment(tmp_path, **settings))


def test_multihost_tells_each_process_who_it_is(tmp_path, hosts):
  done = run(MULTIHOST, hosts, 'sh', '-c', 'pwd; printf "<%s>" "$@"; echo warning >&2', 'x',
             *AWKWARD, cwd=tmp_path, env=environment(tmp_path, PORT='1234'))
  assert done.returncode == 0
  assert sorted(calls_of_ssh(tmp_path)) == [
      f'-T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 {host} '
      "'bash' '-c' '" for host in ('localhost', 'me@127.0.0.1')]
  for number, host in enumerate(('me@127.0.0.1', 'localhost')):
    words = [*AWKWARD, '--coordinator=127.0.0.1:1234', '--num_processes=2',
             f'--process_id={number}']
    printed = f'{tmp_path}\n' + ''.join(f'<{word}>' for word in words)
    own = [line for line in done.stdout.splitlines() if line.startswith(f'{host}: ')]
    assert own == [f'{host}: {line}' for line in printed.splitlines()]
  assert sorted(done.stderr.splitlines()) == ['localhost: warning', 'me@127.0.0.1: warning']


def calls_of_ssh(tmp_path) -> list[str]:
  return (tmp_path / 'calls').read_text().splitlines()


@pytest.mark.parametrize(('codes', 'code'), [
    ((0, 0), 0), ((0, 75), 75), ((75, 1), 1), ((2, 75), 2), ((137, 0), 137)])
def test_multihost_returns_the_code_that_tells_most(tmp_path, hosts, codes, code):
  """Both have begun before one ends; neither minds being stopped."""
  program = ('trap "" TERM; touch up$3; until [ -e up--process_id=0 -a -e up--process_id=1 ]; do '
             'sleep .02; done; sleep .1; case $3 in *0) '
             f'exit {codes[0]};; *) exit {codes[1]};; esac')
  process = start(tmp_path, hosts, program)
  process.communicate(timeout=60)
  assert process.returncode == code


SAVES = 'trap "sleep .2; touch saved$3; exit 75" TERM; touch up$3; while :; do sleep .05; done'


@pytest.mark.parametrize('code', [1, 75])
def test_multihost_stops_the_others_when_one_fails(tmp_path, hosts, code):
  program = (f'case $3 in *0) until [ -e up--process_id=1 ]; do sleep .02; done; exit {code};; '
             f'esac; {SAVES}')
  process = start(tmp_path, hosts, program)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == code
  assert (tmp_path / 'saved--process_id=1').exists()
  assert f'me@127.0.0.1 ended with exit code {code}' in stderr and 'stopping the others' in stderr


@pytest.mark.slow
def test_multihost_does_not_blame_what_it_has_stopped(tmp_path, hosts):
  """SIGTERM ends a process that has not begun to train with 143."""
  program = ('case $3 in *0) until [ -e up ]; do sleep .02; done; exit 75;; esac; touch up; '
             'while :; do sleep .05; done')
  process = start(tmp_path, hosts, program)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 75, stderr


def test_multihost_kills_what_does_not_stop(tmp_path, hosts):
  program = ('trap "" TERM; case $3 in *0) until [ -e pid ]; do sleep .02; done; exit 1;; esac; '
             'echo $$ >pid.new; mv pid.new pid; while :; do sleep .05; done')
  process = start(tmp_path, hosts, program, GRACE='0')
  process.communicate(timeout=60)
  assert process.returncode == 1
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


@pytest.mark.parametrize(('sent', 'code'), [
    (signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_multihost_stops_all_when_it_is_stopped_itself(tmp_path, hosts, sent, code):
  process = start(tmp_path, hosts, SAVES)
  wait_until(lambda: len(list(tmp_path.glob('up*'))) == 2)
  process.send_signal(sent)
  process.communicate(timeout=60)
  assert process.returncode == code
  wait_until(lambda: len(list(tmp_path.glob('saved*'))) == 2)


def test_multihost_on_a_host_without_the_folder(tmp_path, hosts):
  process = start(tmp_path, hosts, ':', DIR=str(tmp_path / 'none'))
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 2 and 'none: No such file' in stderr


@pytest.mark.slow
def test_multihost_trains_as_one_process_does(tmp_path, hosts, finished, digits_dir):
  workdir = tmp_path / 'run'
  command = tiny_command(workdir, digits_dir, '--config.phases=teacher')[1:]
  settings = {name: value for name, value in os.environ.items() if name.startswith('JAX')}
  settings.update(JAX_NUM_CPU_DEVICES='2', PYTHONPATH=str(ROOT))
  done = run(MULTIHOST, hosts, sys.executable, '-m', 'kdih.main', *command, cwd=tmp_path,
             env=environment(tmp_path, **settings))
  assert done.returncode == 0, done.stderr
  assert any(line.startswith('me@127.0.0.1: teacher ') for line in done.stdout.splitlines())
  assert 'teacher' in json.loads((workdir / 'results.json').read_text())
  one, two = exported(finished, 'teacher'), exported(workdir, 'teacher')
  assert one.keys() == two.keys()
  for name, value in one.items():
    np.testing.assert_allclose(value, two[name], rtol=1e-5, atol=1e-5, err_msg=name)
