"""Sweeps through the entry point: the grid, what is shared, resumed, refused, and failures."""
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import TESTS, exported, read_config, tiny_command

from kdih import config_lib, grid, pipeline, sweep
from kdih.errors import ConfigError

PAIR = 'tiny_nets.TinyNet/tiny_nets.TinyNet'
MODEL = 'tiny_nets:TinyNet'


def command(workdir, data_dir, *overrides):
  return tiny_command(workdir, data_dir, *overrides)


def run(workdir, data_dir, *overrides) -> int:
  return sweep.main(command(workdir, data_dir, *overrides))


def results(workdir) -> dict[str, int]:
  """{path of a result: when it was written}."""
  return {str(path.relative_to(workdir)): path.stat().st_mtime_ns
          for path in pathlib.Path(workdir).rglob('result.json')}


@pytest.fixture(scope='module')
def swept(tmp_path_factory, digits_dir):
  """The workdir of a sweep of two methods and two seeds. Tests must not change it."""
  workdir = tmp_path_factory.mktemp('swept')
  assert run(workdir, digits_dir, '--methods=ce,dih', '--seeds=1,2') == 0
  return workdir


def test_a_sweep_trains_one_teacher_and_every_combination(swept):
  assert set(results(swept)) == {
      'tiny_nets.TinyNet/teacher/result.json', 'tiny_nets.TinyNet/heads/result.json',
      *(f'{PAIR}/seed{seed}/student/{method}/result.json'
        for seed in (1, 2) for method in ('ce', 'dih'))}
  found = json.loads((swept / 'sweep.json').read_text())
  assert (found['pairs'], found['methods'], found['seeds']) == (
      [[MODEL, MODEL]], ['ce', 'dih'], [1, 2])


def test_a_run_of_a_sweep_is_the_run_of_the_same_seed_alone(swept, tmp_path, digits_dir):
  teacher = swept / 'tiny_nets.TinyNet/teacher/variables'
  heads = swept / 'tiny_nets.TinyNet/heads/variables'
  pipeline.run(read_config(
      tmp_path, digits_dir, '--config.seed=2', '--config.student.methods=dih',
      f'--config.teacher.variables={teacher}', f'--config.heads.variables={heads}'), tmp_path)
  alone, one = exported(tmp_path, 'student/dih'), exported(swept / PAIR / 'seed2', 'student/dih')
  other = exported(swept / PAIR / 'seed1', 'student/dih')
  for path, array in alone.items():
    np.testing.assert_array_equal(array, one[path])
  assert any((array != other[path]).any() for path, array in alone.items())


def test_finished_runs_are_never_repeated_and_new_ones_are_added(swept, tmp_path, digits_dir):
  workdir = tmp_path / 'copy'
  subprocess.run(['cp', '-a', str(swept), str(workdir)], check=True)
  before = results(workdir)
  assert run(workdir, digits_dir, '--methods=ce,dih', '--seeds=1,2') == 0
  assert results(workdir) == before
  assert run(workdir, digits_dir, '--methods=ce', '--seeds=3') == 0
  after = results(workdir)
  assert set(after) - set(before) == {f'{PAIR}/seed3/student/ce/result.json'}
  assert {path: after[path] for path in before} == before


def test_a_failure_is_isolated_listed_and_tried_again(swept, tmp_path, digits_dir, capsys):
  workdir = tmp_path / 'copy'
  subprocess.run(['cp', '-a', str(swept), str(workdir)], check=True)
  arguments = ('--methods=kd,kd_matched', '--seeds=1')
  assert run(workdir, digits_dir, *arguments, '--config.methods.kd.gain=1e38') == 1
  assert f'failed: {MODEL}/{MODEL}/kd/seed1: ' in capsys.readouterr().err
  folder = workdir / PAIR / 'seed1/student'
  assert 'TrainingError' in json.loads((folder / 'kd/failure.json').read_text())['traceback']
  assert not (folder / 'kd/result.json').exists()
  assert (folder / 'kd_matched/result.json').exists()
  subprocess.run(['rm', '-r', str(folder / 'kd')], check=True)
  assert run(workdir, digits_dir, *arguments) == 0
  assert (folder / 'kd/result.json').exists()


def test_a_workdir_of_another_config_is_refused(swept, digits_dir, capsys):
  before = results(swept)
  assert run(swept, digits_dir, '--methods=ce', '--seeds=1', '--config.data.padding=0') == 2
  error = capsys.readouterr().err
  assert 'config.data.padding (was 1, is 0)' in error and error.count('\n') == 1
  assert results(swept) == before


@pytest.mark.parametrize('overrides, expected', [
    (('--methods=ce,dhi',), "config.methods: unknown 'dhi'; did you mean 'dih'?"),
    (('--methods=ce,ce',), "config.sweep.methods: is ('ce', 'ce'); name each wanted one once"),
    (('--seeds=-1',), 'config.sweep.seeds: is -1; it must be from 0 to 4294967295'),
    (('--seeds=x',), "config.sweep.seeds: ('x',) is not of type tuple of int"),
    (('--students=resnet9',), "config.student.name: unknown 'resnet9'; did you mean"),
    (('--pairs=resnet8',), "config.sweep.pairs: 'resnet8' is not 'teacher:student'"),
    (('--students=resnet8', '--pairs=resnet8:resnet8'),
     'config.sweep.students: is set, and config.sweep.pairs too; set one'),
    (('--methods=sp', '--students=tiny_nets:NoTaps'),
     'config.methods.sp: the teacher tiny_nets:TinyNet cannot teach the student tiny_nets:NoTaps '),
])
def test_bad_input_is_one_line_before_anything_is_written(
    tmp_path, digits_dir, capsys, overrides, expected):
  assert run(tmp_path / 'w', digits_dir, *overrides) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count('\n') == 1, error
  assert not (tmp_path / 'w').exists()


def test_what_does_not_fit_is_left_out_and_said(tmp_path, digits_dir, capsys):
  assert run(tmp_path, digits_dir, '--methods=ce,sp', '--students=tiny_nets:NoTaps',
             '--seeds=1') == 0
  assert 'left out: config.methods.sp: the teacher' in capsys.readouterr().err
  assert [path for path in results(tmp_path) if 'student' in path] == [
      'tiny_nets.TinyNet/tiny_nets.NoTaps/seed1/student/ce/result.json']


def test_a_dry_run_tells_the_costs_and_writes_nothing(tmp_path, digits_dir, capsys):
  assert run(tmp_path / 'w', digits_dir, '--methods=ce,dml', '--seeds=1,2', '--dry_run') == 0
  text = capsys.readouterr().out
  assert not (tmp_path / 'w').exists()
  # Two convolutions with bias and norm, 4 and 8 wide: 36 + 4 + 8, 288 + 8 + 16; then 80 + 10.
  assert re.search(r'teacher +tiny_nets:TinyNet: 450 parameters', text)
  ce, dml = (re.search(rf'student {name} +(\d+) parameters +(\S+) FLOPs.* x (\d)', text).groups()
             for name in ('ce', 'dml'))
  assert int(dml[0]) == 2 * int(ce[0])  # One peer, like the student.
  assert float(dml[1]) / float(ce[1]) == pytest.approx(2, rel=0.3)
  assert ce[2] == dml[2] == '2'


def test_the_runs_come_seed_by_seed():
  config = config_lib.base()
  config.sweep.update(pairs=('resnet110:resnet8', 'vgg13:vgg8'), methods=('ce', 'kd'),
                      seeds=(1, 2))
  names = [one.name for one in grid.runs(config, grid.pairs(config))]
  assert names == [f'{pair}/{method}/seed{seed}' for seed in (1, 2)
                   for pair in ('resnet110/resnet8', 'vgg13/vgg8') for method in ('ce', 'kd')]


def test_the_arguments_of_a_model_are_not_those_of_another():
  config = config_lib.base()
  config.student.kwargs.width = 4
  config.sweep.students = ('resnet8', 'resnet20')
  first, second = grid.pairs(config)
  assert first.config.student.kwargs.to_dict() == {'width': 4}
  assert second.config.student.kwargs.to_dict() == {}
  assert config.student.name == 'resnet8'


@pytest.mark.parametrize('pair', ['resnet8', ':resnet8', 'resnet8:', ''])
def test_a_pair_is_two_names(pair):
  config = config_lib.base()
  config.sweep.pairs = (pair,)
  with pytest.raises(ConfigError, match="is not 'teacher:student'"):
    grid.pairs(config)


@pytest.mark.slow
def test_processes_that_share_a_workdir_take_each_run_once(tmp_path, digits_dir):
  arguments = command(tmp_path, digits_dir, '--methods=ce,kd,dih', '--seeds=1,2')
  environment = {**os.environ, 'PYTHONPATH': f'{TESTS}{os.pathsep}{TESTS.parent}'}
  processes = [subprocess.Popen([sys.executable, '-m', 'kdih.sweep', *arguments[1:]],
                                env=environment, stderr=subprocess.PIPE, text=True)
               for _ in range(2)]
  said = [process.communicate(timeout=300)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  taken = re.findall(r'^sweep: (\S+)$', ''.join(said), re.MULTILINE)
  assert len(taken) == 6 and len(set(taken)) == 6
  assert ''.join(said).count('teacher: tiny_nets:TinyNet, ') == 1
  assert len(results(tmp_path)) == 8
