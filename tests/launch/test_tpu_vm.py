"""Cloud TPU VMs: the exact commands, a run that outlives its connection, pre-emption."""
import os
import signal
import tarfile

import pytest

from tests.helpers.launching import AWKWARD, Cloud, wait_until

FLAGS = ['--config=configs/digits.py', '--workdir=gs://bucket/run']
MAIN = ['-m', 'kdih.main']
QUICK = {'POLL': '0.05', 'WAIT': '0', 'MAX_WAIT': '0'}


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


@pytest.fixture
def ready(cloud) -> Cloud:
  """With a VM on which nothing has run yet."""
  cloud.vm('create')
  cloud.vm('setup')
  (cloud.path / 'calls').unlink()
  return cloud


def wait_for(cloud, status) -> None:
  wait_until(lambda: cloud.vm('status').strip() == status)


@pytest.mark.parametrize(('settings', 'flags'), [
    ({}, ['--accelerator-type=v5litepod-8', '--version=v2-alpha-tpuv5-lite']),
    ({'SPOT': 'yes'}, ['--accelerator-type=v5litepod-8', '--version=v2-alpha-tpuv5-lite',
                       '--spot']),
    ({'VERSION': 'mine'}, ['--accelerator-type=v5litepod-8', '--version=mine'])])
def test_create(cloud, settings, flags):
  cloud.vm('create', **settings)
  assert cloud.calls() == [['create', 'kdih', *flags]]


def test_every_call_names_project_and_zone_and_asks_no_question(cloud):
  cloud.vm('create')
  assert (cloud.path / 'calls').read_text() == (
      '["compute", "tpus", "tpu-vm", "create", "kdih", "--accelerator-type=v5litepod-8", '
      '"--version=v2-alpha-tpuv5-lite", "--project=p", "--zone=z", "--quiet"]\n')


def test_setup_copies_the_working_tree_to_all_workers_and_installs_it(cloud):
  cloud.script(workers=2)
  cloud.vm('create')
  (cloud.tree / 'new file.py').write_text('untracked')
  (cloud.tree / 'setup.py').write_text('changed')
  (cloud.tree / 'runs').mkdir()
  (cloud.tree / 'runs' / 'big').write_text('ignored')
  (cloud.tree / 'launch' / 'slurm.sh').unlink()
  cloud.vm('setup')
  _, scp, ssh = cloud.calls()
  assert scp[1].endswith('/kdih.tar.gz') and scp[2:] == ['kdih:kdih.tar.gz', '--worker=all']
  assert ssh == ['ssh', 'kdih', '--worker=all',
                 '--command=mkdir -p kdih && tar -xzf kdih.tar.gz -C kdih launch/lib.sh '
                 'launch/on_vm.sh && bash kdih/launch/on_vm.sh setup']
  for worker in range(2):
    code = cloud.home(worker) / 'kdih'
    assert (code / 'new file.py').read_text() == 'untracked'
    assert (code / 'setup.py').read_text() == 'changed'
    assert not (code / 'runs').exists()
  home = cloud.home()
  assert (cloud.path / 'uv').read_text().splitlines()[:2] == [
      f'uv venv --quiet --allow-existing --python 3.12 {home}/kdih_env',
      f'uv pip install --quiet --python {home}/kdih_env/bin/python --editable {home}/kdih[tpu]']
  with tarfile.open(home / 'kdih.tar.gz') as archive:
    assert 'launch/slurm.sh' not in archive.getnames()


def test_setup_again_removes_what_left_the_tree_and_nothing_that_a_run_wrote(ready):
  (ready.home() / 'kdih' / 'runs').mkdir()
  (ready.home() / 'kdih' / 'runs' / 'result.json').write_text('mine')
  (ready.tree / 'setup.py').unlink()
  ready.vm('setup')
  assert not (ready.home() / 'kdih' / 'setup.py').exists()
  assert (ready.home() / 'kdih' / 'runs' / 'result.json').read_text() == 'mine'


@pytest.mark.parametrize('step', ['venv', 'pip'])
def test_an_installation_that_fails_may_be_tried_again(cloud, step):
  """uv's exit code 2 is no wrong setting."""
  cloud.vm('create')
  (cloud.path / 'uv_fails').write_text(step)
  assert cloud.do('tpu_vm.sh', 'setup').returncode == 1


def test_a_run_gets_its_arguments_and_leaves_its_log_and_exit_code(ready):
  ready.script(outcomes=[0])
  assert ready.vm('status') == 'idle\n'
  ready.vm('run', *FLAGS, *AWKWARD)
  wait_for(ready, 'ended 0')
  assert ready.started() == [[*MAIN, *FLAGS, *AWKWARD]]
  assert ready.vm('logs') == 'run 0 says: 0\n'
  assert ['ssh', 'kdih', '--worker=0', '--command=bash kdih/launch/on_vm.sh logs'] in ready.calls()


@pytest.mark.slow
def test_a_run_goes_on_alone_until_it_is_stopped_and_resumes(ready):
  ready.script(outcomes=['wait', 0])
  ready.vm('run', *FLAGS)
  wait_until(lambda: bool(ready.started()))
  assert ready.vm('status') == 'running\n'
  for verb in (['run', '--config=other.py'], ['resume'], ['setup']):
    refused = ready.do('tpu_vm.sh', *verb)
    assert refused.returncode == 2 and 'a run is in progress' in refused.stderr
  ready.vm('stop')
  assert ready.vm('status') == 'ended 75\n'
  ready.vm('resume')
  wait_for(ready, 'ended 0')
  assert ready.started() == [[*MAIN, *FLAGS]] * 2
  assert ready.vm('logs') == 'run 0 says: wait\nsaved\nrun 1 says: 0\n'


def signal_run(cloud, number: int) -> None:
  """Sends a signal to all processes of the run, which has begun."""
  os.killpg(int((cloud.home() / 'kdih_run' / 'process').read_text()), number)


def test_a_machine_that_was_switched_off_is_to_be_started_again(ready):
  """Whatever the run before ended with."""
  ready.script(outcomes=[0, 'wait'])
  ready.vm('run', *FLAGS)
  wait_for(ready, 'ended 0')
  ready.vm('resume')
  wait_until(lambda: len(ready.started()) == 2)
  signal_run(ready, signal.SIGKILL)
  wait_for(ready, 'ended 75')


@pytest.mark.slow
def test_a_machine_that_shuts_down_lets_the_run_save_and_say_so(ready):
  ready.script(outcomes=['wait'])
  ready.vm('run', *FLAGS)
  wait_until(lambda: bool(ready.started()))
  signal_run(ready, signal.SIGTERM)
  wait_until((ready.home() / 'kdih_run' / 'code').exists)
  assert ready.vm('logs').endswith('saved\n')
  assert ready.vm('status') == 'ended 75\n'


def test_a_slice_ends_with_the_code_that_tells_most(cloud):
  cloud.script(outcomes=[[75, 1]], workers=2)
  for verb in (['create'], ['setup'], ['run', *FLAGS]):
    cloud.vm(*verb)
  wait_for(cloud, 'ended 1')
  assert cloud.started(0) == cloud.started(1) == [[*MAIN, *FLAGS]]


def test_where_one_worker_does_not_start_the_others_are_stopped(cloud):
  cloud.script(outcomes=['wait'], workers=2)
  cloud.vm('create')
  cloud.vm('setup')
  (cloud.home(1) / 'kdih' / 'launch' / 'lib.sh').unlink()
  done = cloud.do('tpu_vm.sh', 'run', *FLAGS)
  assert done.returncode == 1
  assert cloud.verbs()[-2:] == ['start', 'stop']
  assert (cloud.home(0) / 'kdih_run' / 'code').read_text() == '75\n'


@pytest.mark.parametrize('verb', ['create', 'delete', 'setup', 'stop', 'logs'])
def test_a_failure_of_gcloud_is_passed_on(ready, verb):
  ready.script(codes={verb: [7], 'scp': [7], 'ssh': [7]})
  done = ready.do('tpu_vm.sh', verb)
  assert done.returncode == 7
  assert 'UNAVAILABLE' in done.stderr


@pytest.mark.parametrize(('state', 'status'), [
    ('PREEMPTED', 'preempted'), ('TERMINATED', 'preempted'), ('REPAIRING', 'not ready: REPAIRING')])
def test_the_status_of_a_vm_that_is_not_ready(ready, state, status):
  (ready.path / 'kdih' / 'state').write_text(state)
  assert ready.vm('status') == f'{status}\n'


def test_a_vm_that_does_not_answer_is_not_taken_for_a_missing_one(ready):
  ready.script(codes={'describe': [1]})
  assert ready.vm('status') == 'unreachable\n'
  ready.vm('delete')
  assert ready.vm('status') == 'missing\n'


@pytest.mark.slow
def test_babysit_replaces_a_vm_that_is_taken_away(cloud):
  cloud.script(outcomes=['preempted', 75, 0])
  done = cloud.do('babysit.sh', *FLAGS, *AWKWARD, SPOT='yes', **QUICK)
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == ['create', 'setup', 'start', 'delete', 'create', 'setup', 'start',
                           'start']
  assert cloud.started() == [[*MAIN, *FLAGS, *AWKWARD]] * 3
  assert [call for call in cloud.calls() if call[0] == 'create'] == [
      ['create', 'kdih', '--accelerator-type=v5litepod-8', '--version=v2-alpha-tpuv5-lite',
       '--spot']] * 2
  lines = done.stderr.splitlines()
  for line in ('kdih: was pre-empted', 'kdih: delete', 'kdih: resume', 'kdih: the run is done'):
    assert any(line in text for text in lines), line


@pytest.mark.parametrize('code', [1, 2])
def test_babysit_stops_where_the_run_failed_for_good(cloud, code):
  cloud.script(outcomes=[code, 0])
  done = cloud.do('babysit.sh', *FLAGS, **QUICK)
  assert done.returncode == code
  assert cloud.verbs() == ['create', 'setup', 'start']
  assert f'failed with exit code {code}' in done.stderr


def test_babysit_stops_where_gcloud_refuses_a_setting(cloud):
  cloud.script(codes={'create': [2]})
  done = cloud.do('babysit.sh', *FLAGS, **QUICK)
  assert done.returncode == 2
  assert cloud.verbs() == ['create'] and 'create cannot work' in done.stderr


def test_babysit_tries_again_what_fails_and_gives_up_in_the_end(cloud):
  cloud.script(outcomes=[137, 0], codes={'create': [1, 1], 'scp': [1], 'describe': [0, 0, 0, 1]})
  done = cloud.do('babysit.sh', *FLAGS, **QUICK)
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == ['create'] * 3 + ['setup', 'start', 'start']
  assert 'the run ended with exit code 137; trying again' in done.stderr
  cloud.vm('delete')
  cloud.script(codes={'create': [1] * 9})
  done = cloud.do('babysit.sh', *FLAGS, TRIES='3', **QUICK)
  assert done.returncode == 1
  assert cloud.verbs()[-3:] == ['create'] * 3 and cloud.verbs()[-4] == 'delete'
  assert 'could not be created, 3 times in a row; giving up' in done.stderr


@pytest.mark.slow
def test_babysit_waits_twice_as_long_each_time_and_no_longer_than_the_bound(cloud):
  cloud.script(codes={'create': [1] * 9})
  done = cloud.do('babysit.sh', *FLAGS, TRIES='6', WAIT='0', MAX_WAIT='0')
  assert done.stderr.count('trying again in 0 seconds') == 5
  naps = cloud.tree.parent / 'naps'
  (cloud.tree.parent / 'bin' / 'sleep').write_text(f'#!/bin/sh\necho "$1" >>{naps}\n')
  (cloud.tree.parent / 'bin' / 'sleep').chmod(0o755)
  cloud.script(codes={'create': [1] * 9})
  cloud.do('babysit.sh', *FLAGS, TRIES='6', WAIT='30', MAX_WAIT='100')
  assert naps.read_text().split() == ['30', '60', '100', '100', '100']


@pytest.mark.slow
def test_babysit_stays_with_the_run_that_goes_on_and_starts_no_other(ready):
  ready.script(outcomes=['wait', 0])
  ready.vm('run', *FLAGS)
  wait_until(lambda: bool(ready.started()))
  refused = ready.do('babysit.sh', *FLAGS, **QUICK)
  assert refused.returncode == 2 and 'another run is in progress' in refused.stderr
  ready.vm('stop')
  assert ready.do('babysit.sh', **QUICK).returncode == 0
  assert ready.started() == [[*MAIN, *FLAGS]] * 2


@pytest.mark.slow
def test_babysit_does_not_take_the_end_of_an_older_run_for_its_own(ready):
  ready.script(outcomes=[0, 0])
  ready.vm('run', *FLAGS)
  wait_for(ready, 'ended 0')
  assert ready.do('babysit.sh', *FLAGS, '--config.seed=2', **QUICK).returncode == 0
  assert ready.started()[1:] == [[*MAIN, *FLAGS, '--config.seed=2']]
