"""A whole run through the entry point, and what it leaves behind."""
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from kdih import errors, main
from kdih.config import flags
from kdih.phases import exported_variables, resume
from kdih.runtime import devices, workdir as workdir_lib
from kdih.training import metric_log, orbax_files
from tests.helpers.runs import ROOT, exported, read_config, tiny_command

PHASES = ('teacher', 'heads', 'student/ce', 'student/kd', 'student/dih')
ONLY_DIH = '--config.student.methods=dih'
CHAIN = ('teacher', 'heads', 'student/dih')


def assert_same(one, other, tolerance=0.0):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


def stamps(workdir) -> dict[str, int]:
  return {str(path): path.stat().st_mtime_ns for path in workdir.glob('*/**/*') if path.is_file()}


@pytest.mark.parametrize('phase', PHASES)
def test_a_phase_leaves_checkpoints_variables_metrics_events_and_a_result(finished, phase):
  folder = finished / phase
  assert {p.name for p in (folder / 'checkpoints').iterdir()} >= {'4', '6'}
  assert (folder / 'variables').is_dir()
  assert list(folder.glob('events.out.tfevents.*'))
  steps = [line['step'] for line in metric_log.read_metrics(folder / 'metrics.jsonl')
           if 'val/top1' in line]
  assert steps == [2, 4, 6]
  result = json.loads((folder / 'result.json').read_text())
  assert result['steps'] == 6
  assert result['seed'] == 30
  assert result['seconds'] > 0
  assert result['examples_per_second'] > 0
  for part in ('val', 'test_last', 'test_best_val'):
    assert 0 <= result[part]['top1'] <= result[part]['top5'] <= 1
    assert result[part]['loss'] > 0


def test_results_hold_every_phase_and_every_member_of_the_cohort(finished):
  results = json.loads((finished / 'results.json').read_text())
  assert list(results['student']) == ['ce', 'kd', 'dih']
  members = results['heads']['members']
  assert list(members) == ['stage1', 'stage2', 'final', 'mean']
  # Heads on 4x4x4 and 2x2x8 features, to 10 classes.
  assert members['stage1']['parameters'] == 64 * 10 + 10
  assert members['stage2']['parameters'] == 32 * 10 + 10
  assert results['heads']['parameters'] == 650 + 330
  assert members['final']['test_last']['top1'] == results['teacher']['test_best_val']['top1']
  assert 'agreement' not in members['final']['test_last']
  assert 0 <= results['student']['dih']['test_last']['agreement'] <= 1


def test_the_val_metrics_are_those_of_the_best_checkpoint(finished):
  for phase in PHASES:
    lines = metric_log.read_metrics(finished / phase / 'metrics.jsonl')
    best = max(line['val/top1'] for line in lines if 'val/top1' in line)
    result = json.loads((finished / phase / 'result.json').read_text())
    if phase == 'heads':
      heads = [result['members'][tap]['val']['top1'] for tap in ('stage1', 'stage2')]
      assert best == pytest.approx(sum(heads) / 2, abs=1e-9)
    else:
      assert best == pytest.approx(result['val']['top1'], abs=1e-9)


def test_the_manifest_says_what_ran(finished):
  manifest = json.loads((finished / 'manifest.json').read_text())
  assert manifest['config']['methods']['dih']['alpha'] == 0.1
  assert manifest['versions']['jax'] == jax.__version__
  assert len(manifest['devices']) == 4


def test_a_result_tells_who_taught(finished):
  results = json.loads((finished / 'results.json').read_text())
  teacher, heads = (results[phase]['fingerprint'] for phase in ('teacher', 'heads'))
  assert {name: result['identity']['teacher'] for name, result in results['student'].items()} == {
      'ce': {}, 'kd': {'variables': teacher}, 'dih': {'variables': teacher, 'heads': heads}}


def test_the_backbone_is_bit_identical_after_the_heads_were_trained(finished):
  before = json.loads((finished / 'teacher' / 'result.json').read_text())['fingerprint']
  meta = orbax_files.read_meta(finished / 'heads' / 'variables')
  assert meta['teacher'] == before
  assert set(exported(finished, 'heads')) == {
      f"['params']['{tap}']['{leaf}']"
      for tap in ('stage1', 'stage2') for leaf in ('kernel', 'bias')}


def test_a_finished_phase_is_not_run_again_and_named_once(tmp_path, finished, digits_dir, capsys):
  workdir = tmp_path / 'again'
  shutil.copytree(finished, workdir)
  before = stamps(workdir)
  capsys.readouterr()
  assert main.main(tiny_command(workdir, digits_dir)) == 0
  assert stamps(workdir) == before
  lines = [line for line in capsys.readouterr().err.splitlines() if 'finished by' in line]
  assert lines == [f'{phase}: finished by an earlier command' for phase in PHASES]


def test_a_phase_names_the_step_from_which_it_resumes(tmp_path, finished, digits_dir, capsys):
  workdir = tmp_path / 'again'
  shutil.copytree(finished, workdir)
  (workdir / 'student/kd/result.json').unlink()
  shutil.rmtree(workdir / 'student/kd/checkpoints/6')
  capsys.readouterr()
  assert main.main(tiny_command(workdir, digits_dir)) == 0
  error = capsys.readouterr().err
  assert error.count('student/kd: resumes from step 4\n') == error.count('resumes from') == 1
  assert 'student/kd: finished by' not in error
  assert exported(workdir, 'student/kd').keys() == exported(finished, 'student/kd').keys()


@pytest.mark.slow
def test_a_method_can_be_added_to_a_finished_run(tmp_path, finished, digits_dir):
  workdir = tmp_path / 'more'
  shutil.copytree(finished, workdir)
  before = stamps(workdir)
  results = main.run(
      read_config(workdir, digits_dir, '--config.student.methods=ce,kd_matched'), workdir)
  assert list(results['student']) == ['ce', 'kd_matched', 'dih', 'kd']
  assert {name: time for name, time in stamps(workdir).items() if name in before} == before


def test_a_typing_error_in_a_model_is_named_before_the_change(capsys, finished, digits_dir):
  before = stamps(finished)
  code = main.main(tiny_command(finished, digits_dir, '--config.teacher.name=resnet21'))
  line = capsys.readouterr().err
  assert code == 2 and line.startswith("kdih: config.teacher.name: unknown 'resnet21'; ")
  assert stamps(finished) == before


def test_another_config_in_the_workdir_is_refused_and_named(capsys, finished, digits_dir):
  before = stamps(finished)
  code = main.main(tiny_command(finished, digits_dir, '--config.seed=31',
                                '--config.methods.dih.alpha=0.2'))
  line = capsys.readouterr().err
  assert code == 2
  assert line == (
      f'kdih: --workdir: {finished} holds a run that was begun with other settings: '
      'config.methods.dih.alpha (was 0.1, is 0.2), config.seed (was 30, is 31). Undo the change, '
      'choose another workdir, or accept the change with --accept=config; the results will list '
      'it\n')
  assert line.count('\n') == 1
  assert stamps(finished) == before


def test_the_data_may_lie_elsewhere_when_a_run_goes_on(finished):
  workdir = workdir_lib.Workdir(finished)
  assert resume.check_config(
      workdir, workdir_lib.resolved(read_config(finished, '/elsewhere'))) == []
  with pytest.raises(errors.ConfigError, match='config.data.validation_seed'):
    resume.check_config(workdir, workdir_lib.resolved(
        read_config(finished, '/elsewhere', '--config.data.validation_seed=1')))


@pytest.mark.slow
def test_one_device_and_four_give_the_same_variables(tmp_path, finished, digits_dir):
  run_process(tmp_path, digits_dir, ONLY_DIH, JAX_NUM_CPU_DEVICES='1')
  for phase in CHAIN:
    assert_same(exported(tmp_path, phase), exported(finished, phase), tolerance=1e-5)


@pytest.mark.slow
def test_the_mean_soft_label_trains_the_student_that_the_branches_do(
    tmp_path, finished, digits_dir):
  main.run(read_config(
      tmp_path, digits_dir, '--config.compute.mean_soft_label=false', ONLY_DIH), tmp_path)
  assert_same(exported(tmp_path, 'student/dih'), exported(finished, 'student/dih'), tolerance=1e-5)


@pytest.mark.slow
def test_the_streaming_loader_gives_the_same_variables_as_the_one_in_memory(
    tmp_path, finished, digits_dir):
  config = read_config(tmp_path, digits_dir, '--config.data.loader=streaming', ONLY_DIH)
  main.run(config, tmp_path)
  for phase in CHAIN:
    assert_same(exported(tmp_path, phase), exported(finished, phase))


def run_process(workdir, digits_dir, *overrides, **environment):
  command = [sys.executable, '-m', 'kdih.main', *tiny_command(workdir, digits_dir, *overrides)[1:]]
  return subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
                        check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_that_forgets_its_programs_gives_the_same_variables(
    tmp_path, finished, digits_dir, monkeypatch):
  (tmp_path / 'most').write_text('3')  # Memory maps: any process has more.
  monkeypatch.setattr(devices, '_MOST_MAPS', tmp_path / 'most')
  program = jax.jit(lambda x: x + 1)
  program(1)
  main.run(read_config(tmp_path / 'w', digits_dir), tmp_path / 'w')
  assert not program._cache_size()
  for phase in ('teacher', 'heads', 'student/dih'):
    np.testing.assert_equal(exported(tmp_path / 'w', phase), exported(finished, phase))


@pytest.mark.slow
def test_a_teacher_that_exists_is_measured_again_and_used(tmp_path, finished, digits_dir, capsys):
  path = finished / 'teacher' / 'variables'
  results = main.run(
      read_config(tmp_path, digits_dir, f'--config.teacher.variables={path}', ONLY_DIH), tmp_path)
  assert 'teacher: val top-1 ' in capsys.readouterr().err
  assert results['teacher']['steps'] == 0
  for phase in CHAIN:
    assert_same(exported(tmp_path, phase), exported(finished, phase))


def test_a_student_can_be_loaded_and_used(finished):
  model, variables, meta = exported_variables.load_model(
      finished / 'student' / 'dih' / 'variables', model='tests.helpers.tiny_nets:TinyNet')
  images = np.zeros((3, *meta['data']['image_shape']), np.float32)
  assert model.apply(variables, images, train=False).shape == (3, 10)
  assert meta['data']['mean'] == [0.5]
  with pytest.raises(errors.ConfigError, match='holds heads'):
    exported_variables.load_model(finished / 'heads' / 'variables')


@pytest.mark.slow
def test_a_run_in_memory_needs_no_tensorflow(tmp_path, digits_dir):
  """Without it there are no TensorBoard events, and the run logs that."""
  blocked = tmp_path / 'blocked'
  blocked.mkdir()
  (blocked / 'tensorflow.py').write_text('raise ImportError("blocked")')
  done = run_process(tmp_path / 'w', digits_dir, ONLY_DIH,
                     PYTHONPATH=os.pathsep.join([str(blocked), str(ROOT)]))
  assert 'no TensorBoard events: blocked' in done.stderr
  assert (tmp_path / 'w' / 'student' / 'dih' / 'result.json').exists()


def test_a_teacher_whose_accuracy_is_not_the_stored_one_is_refused(tmp_path, finished, digits_dir):
  path = tmp_path / 'variables'
  meta = orbax_files.read_meta(finished / 'teacher' / 'variables')
  meta['val']['top1'] += 0.1
  exported_variables.save(path, orbax_files.restore(finished / 'teacher' / 'variables'), meta)
  with pytest.raises(errors.ConfigError, match='config.teacher.variables: .* its files or'):
    main.run(read_config(tmp_path / 'w', digits_dir, f'--config.teacher.variables={path}'),
                 tmp_path / 'w')


@pytest.mark.slow
def test_heads_of_another_teacher_are_refused(tmp_path, finished, digits_dir):
  path = finished / 'heads' / 'variables'
  with pytest.raises(errors.ConfigError, match='config.heads.variables: .* another teacher'):
    main.run(read_config(tmp_path, digits_dir, f'--config.heads.variables={path}',
                             '--config.seed=31'), tmp_path)


@pytest.mark.slow
def test_without_a_validation_split_the_last_checkpoint_is_chosen(tmp_path, digits_dir):
  results = main.run(read_config(
      tmp_path, digits_dir, '--config.data.validation_fraction=0.0',
      ONLY_DIH), tmp_path)
  for result in (results['teacher'], results['student']['dih']):
    assert result['val'] is None
    assert result['test_last'] == result['test_best_val']


def test_weights_by_validation_need_a_validation_split(tmp_path, digits_dir, capsys):
  code = main.main(tiny_command(tmp_path / 'w', digits_dir, '--config.student.methods=dih_learnt',
                                '--config.data.validation_fraction=0.0'))
  line = capsys.readouterr().err
  assert code == 2
  assert 'set config.data.validation_fraction above 0' in line and line.count('\n') == 1
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
@pytest.mark.parametrize('overrides', [
    ('dtype=bfloat16', 'heads.kind=gap'),
    ('sync_batch_norm=false', 'heads.taps=stage2', 'student.train.schedule=cosine'),
    ('heads.taps=Conv_1,stage1', 'student.train.optimizer=adamw')], ids=lambda those: those[0])
def test_every_setting_runs(tmp_path, digits_dir, overrides):
  results = main.run(read_config(
      tmp_path, digits_dir, ONLY_DIH, *(f'--config.{override}' for override in overrides)),
      tmp_path)
  assert 0 < results['student']['dih']['test_last']['loss'] < 10


@pytest.mark.slow
def test_a_profile_is_written_on_request(tmp_path, digits_dir):
  main.run(read_config(
      tmp_path, digits_dir, '--config.profile=true', '--config.phases=teacher',
      '--config.teacher.train.length=16'), tmp_path)
  assert [path for path in (tmp_path / 'teacher').rglob('*') if path.name.endswith('.xplane.pb')]


def test_an_infinite_loss_stops_the_run_and_names_phase_and_step(tmp_path, digits_dir, capsys):
  code = main.main(tiny_command(
      tmp_path, digits_dir, '--config.teacher.name=tests.helpers.tiny_nets:Diverging'))
  assert code == 1
  assert 'teacher: the loss is' in capsys.readouterr().err
  assert not (tmp_path / 'teacher' / 'result.json').exists()


def test_a_command_reads_the_same_config_twice():
  command = tiny_command('w', 'd', '--config.heads.taps=stage1,stage2')
  assert flags.read(command)[0].heads.taps == ('stage1', 'stage2')
  assert flags.read(command)[0] == flags.read(command)[0]
