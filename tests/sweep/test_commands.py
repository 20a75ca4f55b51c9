"""Sweeps that share a workdir: the second is refused where it would not do as the first."""
import json
import shutil

import pytest

from tests.helpers.runs import read_config
from tests.helpers.sweeps import NETS, results, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def begun(tmp_path_factory, digits_dir):
  """The workdir of a sweep whose teacher is trained, and none of its students has begun."""
  workdir = tmp_path_factory.mktemp('begun')
  assert run(workdir, digits_dir, '--methods=ce,kd', '--seeds=1') == 0
  for folder in workdir.glob(f'{NETS}.TinyNet/*/seed*'):
    shutil.rmtree(folder)
  return workdir


@pytest.mark.parametrize(('changed', 'said'), [
    (('--config.student.train.learning_rate=0.001',),
     'config.student.train.learning_rate (was 0.1, is 0.001)'),
    (('--config.compute.cache=views:4',), "config.compute.cache (was 'none', is 'views:4')"),
    (('--config.methods.kd.alpha=0.5',), 'config.methods.kd.alpha (was 0.1, is 0.5)'),
    (('--methods=kd', '--config.methods.kd.learning_rate=0.5'),
     'config.methods.kd.learning_rate (was None, is 0.5)')])
def test_another_recipe_is_refused_before_a_student_has_begun(
    begun, digits_dir, capsys, changed, said):
  before = (begun / 'sweep.json').read_bytes(), results(begun)
  assert run(begun, digits_dir, '--methods=ce,kd', '--seeds=2', *changed) == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
  assert ((begun / 'sweep.json').read_bytes(), results(begun)) == before


@pytest.mark.parametrize('changed', [
    ('--seeds=2', '--methods=ce'),
    ('--seeds=1', '--methods=ce', '--config.methods.kd.alpha=0.5'),  # It does not name kd.
    ('--seeds=1', '--methods=ce', '--config.compute.prefetch=3')])
def test_what_shares_the_recipe_is_taken(begun, tmp_path, digits_dir, changed):
  copy = shutil.copytree(begun, tmp_path / 'copy')
  assert run(copy, digits_dir, *changed) == 0
  assert len(json.loads((copy / 'sweep.json').read_text())) == 2


def test_a_command_that_came_first_counts_when_this_one_begins(begun, tmp_path, digits_dir, capsys):
  """The other began after this one had been checked: it is noticed under the lock."""
  from kdih.sweep.jobs import Sweep
  from kdih.sweep.resume import Checks
  copy = shutil.copytree(begun, tmp_path / 'copy')
  other = json.loads((copy / 'sweep.json').read_text())
  (copy / 'sweep.json').unlink()
  config = read_config(copy, digits_dir, '--config.sweep.methods=ce', '--config.sweep.seeds=2',
                       '--config.student.train.momentum=0.5')
  checks = Checks(Sweep(config, copy))
  (copy / 'sweep.json').write_text(json.dumps(other))
  with pytest.raises(ValueError, match='config.student.train.momentum .was 0.9, is 0.5'):
    checks.record(splits=None)
  assert json.loads((copy / 'sweep.json').read_text()) == other


def test_a_run_that_a_later_command_has_begun_otherwise_does_not_go_on(
    begun, tmp_path, digits_dir):
  """A second command has accepted another rate, and was killed, before the first comes to it."""
  from kdih.data import source
  from kdih.sweep.jobs import Sweep
  from kdih.sweep.resume import Checks
  from kdih.sweep.run import Worker
  copy, options = shutil.copytree(begun, tmp_path / 'copy'), ('--methods=ce', '--seeds=2')
  first = Sweep(read_config(
      copy, digits_dir, '--config.sweep.methods=ce', '--config.sweep.seeds=2'), copy)
  checks, splits = Checks(first), source.open_splits(first.builder, first.config.data)
  checks.identify(splits)
  assert run(copy, digits_dir, *options, '--accept=config',
             '--config.student.train.learning_rate=0.02') == 0
  result, = copy.glob(f'{NETS}.TinyNet/*/seed2/student/ce/result.json')
  manifest = result.parents[2] / 'manifest.json'
  result.unlink()
  before = manifest.read_bytes()
  worker = Worker(first, checks, splits, earlier={})
  assert all(map(worker.settle, first.jobs()))
  reason, = worker.failures.values()
  assert 'config.student.train.learning_rate (was 0.02, is 0.1)' in reason
  assert manifest.read_bytes() == before and not result.exists()


def test_what_is_accepted_is_said_once_of_each_workdir(begun, tmp_path, digits_dir, capsys):
  copy = shutil.copytree(begun, tmp_path / 'copy')
  command = '--methods=ce,kd', '--seeds=1'
  assert run(copy, digits_dir, *command) == 0
  students, = copy.glob(f'{NETS}.TinyNet/*/seed1')
  capsys.readouterr()
  assert run(copy, digits_dir, *command, '--accept=config',
             '--config.student.train.learning_rate=0.001') == 0
  change = 'accepted: config: config.student.train.learning_rate (was 0.1, is 0.001)'
  said = [line for line in capsys.readouterr().err.splitlines() if 'accepted' in line]
  assert said == [f'{path}: {change}' for path in (copy, students)]


def test_what_a_command_has_accepted_later_ones_need_not(begun, tmp_path, digits_dir, capsys):
  """The first run and the first command keep the old rate; seeds 2 and 3 learn with the new one."""
  copy, new = shutil.copytree(begun, tmp_path / 'copy'), '--config.student.train.learning_rate=0.02'
  assert run(copy, digits_dir, '--methods=ce', '--seeds=1') == 0
  assert run(copy, digits_dir, '--methods=ce', '--seeds=2', new) == 2
  assert run(copy, digits_dir, '--methods=ce', '--seeds=2', new, '--accept=config') == 0
  capsys.readouterr()
  assert run(copy, digits_dir, '--methods=ce', '--seeds=3', new) == 0
  change = 'config.student.train.learning_rate (was 0.1, is 0.02)'
  assert f'{copy}: accepted by an earlier command: config: {change}' in capsys.readouterr().err
  *_, last = json.loads((copy / 'sweep.json').read_text())
  assert last['accepted'] == [change]
  # Another change, and the way back, were not accepted.
  assert run(copy, digits_dir, '--methods=ce', '--seeds=3', new,
             '--config.student.train.momentum=0.5') == 2
  assert 'momentum (was 0.9, is 0.5)' in capsys.readouterr().err
  assert run(copy, digits_dir, '--methods=ce', '--seeds=4') == 2
  assert 'learning_rate (was 0.02, is 0.1)' in capsys.readouterr().err
  # Nor that a run of the old rate goes on with the new one.
  assert run(copy, digits_dir, '--methods=ce,kd', '--seeds=1', new) == 2
  assert (f'{NETS}.TinyNet/seed1 holds a run that was begun with other settings: '
          in capsys.readouterr().err)


def test_a_command_need_not_ask_for_the_variants_of_an_earlier_one(begun, tmp_path, digits_dir):
  copy = shutil.copytree(begun, tmp_path / 'copy')
  assert run(copy, digits_dir, '--methods=kd', '--seeds=1', '--alphas=0.5') == 0
  assert run(copy, digits_dir, '--methods=kd', '--seeds=1') == 0
  students = {path.split('/')[-2] for path in results(copy) if 'student' in path}
  assert students == {'kd', 'kd_alpha=5e-1'}


@pytest.mark.parametrize('commands', [
    3, 'x', {'config': {}}, [3], [{}], [{'config': 3}], [{'config': {'sweep': 3}}],
    [{'config': {'sweep': {'methods': 3}, 'student': {'methods': ['kd']}}}],
    [{'config': {'sweep': {'methods': [{}]}}}], [{'config': {}}],
    [{'config': {}, 'accepted': [3]}]])
def test_a_list_of_commands_that_is_none_is_damaged(begun, tmp_path, digits_dir, capsys, commands):
  copy = shutil.copytree(begun, tmp_path / 'copy')
  (copy / 'sweep.json').write_text(json.dumps(commands))
  assert run(copy, digits_dir, '--methods=ce,kd', '--seeds=1') == 2
  assert f'{copy}/sweep.json is damaged (' in capsys.readouterr().err
