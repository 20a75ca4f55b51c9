"""What a run is made of: what changed between a stop and the resume is noticed and named."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from kdih import main
from kdih.phases import resume
from kdih.sweep import __main__ as sweep
from tests.helpers.made_data import make_folder, pixels, save
from tests.helpers.runs import ROOT, exported, tiny_command

pytestmark = pytest.mark.slow

OWN_NET = '''
import flax.linen as nn

class OwnNet(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, images, train: bool):
    x = nn.relu(nn.Conv(4, (3, 3))(images))
    self.sow('intermediates', 'stage1', x)
    return nn.Dense(self.num_classes)(x.mean((1, 2)))
'''


class Scene:
  """A folder of images, models of one's own, and a run that stopped after its first method."""

  def __init__(self, folder: pathlib.Path):
    self.pictures, self.workdir, self.nets = folder / 'pictures', folder / 'w', folder / 'nets'
    self.data_dir = folder / 'tfds'

  def write_nets(self, source: str) -> None:
    self.nets.mkdir(exist_ok=True)
    (self.nets / 'own_nets.py').write_text(source)
    sys.modules.pop('own_nets', None)
    shutil.rmtree(self.nets / '__pycache__', ignore_errors=True)

  def command(self, *overrides: str) -> list[str]:
    trains = [f'--config.{name}.global_batch_size=8' for name in (
        'teacher.train', 'heads.train', 'student.train', 'student.prepare')]
    return tiny_command(
        self.workdir, str(self.data_dir), *trains, '--config.data.name=image_folder',
        f'--config.data.folder={self.pictures}', '--config.data.train_split=train',
        '--config.data.test_split=test', '--config.teacher.name=own_nets:OwnNet',
        '--config.student.kwargs.width=4', *overrides)

  def resume(self, *overrides: str) -> int:
    """Resumes with a second method."""
    return main.main(self.command('--config.student.methods=ce,kd', *overrides))


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run whose teacher, heads and first method are finished. Tests must not change it."""
  scene = Scene(tmp_path_factory.mktemp('stopped'))
  make_folder(scene.pictures, 8, 8)
  scene.write_nets(OWN_NET)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(scene.nets))
    assert main.main(scene.command('--config.student.methods=ce')) == 0
  return scene


@pytest.fixture
def scene(stopped, tmp_path, monkeypatch):
  """A copy of it, which its images have moved with."""
  shutil.copytree(stopped.workdir.parent, tmp_path / 'copy', ignore=lambda *_: ['tfds'])
  copy = Scene(tmp_path / 'copy')
  sys.modules.pop('own_nets', None)
  monkeypatch.syspath_prepend(str(copy.nets))
  return copy


def add_image(scene):
  save(scene.pictures / 'train/cow/new.png', pixels(99, 8, 8, 3))


def swap_images(scene):
  one, other = (scene.pictures / f'train/{name}.png' for name in ('ant/0', 'cow/0'))
  content = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(content)


def rename_class(scene):
  for split in ('train', 'test'):
    (scene.pictures / split / 'ant').rename(scene.pictures / split / 'zebra')


def change_code(scene):
  scene.write_nets(OWN_NET.replace('nn.relu', 'nn.gelu'))


def change_teacher(scene):
  """Another teacher, whose folder is whole."""
  other = scene.workdir.with_name('other')
  assert main.main([*scene.command('--config.phases=teacher,heads', '--config.seed=7'),
                    f'--workdir={other}']) == 0
  for phase in ('teacher', 'heads'):
    shutil.rmtree(scene.workdir / phase)
    shutil.copytree(other / phase, scene.workdir / phase)


@pytest.mark.parametrize(('change', 'expected', 'part'), [
    (add_image, 'other data: 1 image of train was added', 'data'),
    (swap_images, 'other data: ', 'data'),
    (rename_class, "other data: the class 'zebra' is new, the class 'ant' is gone", 'data'),
    (change_code, "other code: the teacher's forward pass or initialisation has changed",
     'computation'),
    (change_teacher, 'another teacher: its variables have changed, the variables of its heads',
     'teacher'),
], ids=lambda value: getattr(value, '__name__', ''))
def test_what_changed_is_named_and_nothing_is_written(scene, capsys, change, expected, part):
  change(scene)
  before = {path: path.stat().st_mtime_ns for path in scene.workdir.rglob('*')}
  capsys.readouterr()
  assert scene.resume() == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith(
      f'kdih: --workdir: {scene.workdir} holds a run that was begun with {expected}')
  assert f'accept the change with --accept={part};' in line
  assert {path: path.stat().st_mtime_ns for path in scene.workdir.rglob('*')} == before


def test_what_is_accepted_is_said_in_what_follows(scene, capsys):
  add_image(scene)
  assert scene.resume('--accept=data') == 0
  line = 'data: 1 image of train was added'
  assert f'accepted: {line}' in capsys.readouterr().err
  results = json.loads((scene.workdir / 'results.json').read_text())['student']
  assert (results['ce']['accepted'], results['kd']['accepted']) == ([], [line])
  assert f'- student/kd: {line}' in (scene.workdir / 'report.md').read_text()
  assert results['ce']['identity']['data'] != results['kd']['identity']['data']
  # From now on it is made of the new images; later results still record the change.
  assert scene.resume('--config.student.methods=ce,kd,kd_matched') == 0
  results = json.loads((scene.workdir / 'results.json').read_text())['student']
  assert results['kd_matched']['accepted'] == [line]


def test_what_a_sweep_accepts_it_accepts_once_and_says_of_all_that_follows(scene):
  scene.workdir = scene.workdir.with_name('sweep')
  command = scene.command('--methods=kd', '--config.sweep.seeds=1')
  assert sweep.main(command) == 0
  add_image(scene)
  assert sweep.main([*command, '--seeds=2']) == 2
  assert sweep.main([*command, '--seeds=2', '--accept=data']) == 0
  assert sweep.main([*command, '--seeds=2,3']) == 0
  found = {path.parts[-4]: json.loads(path.read_text())['accepted']
           for path in scene.workdir.glob('*/*/seed*/student/kd/result.json')}
  line = 'data: 1 image of train was added'
  assert found == {'seed1': [], 'seed2': [line], 'seed3': [line]}


def test_another_part_than_the_accepted_one_is_refused(scene, capsys):
  add_image(scene)
  assert scene.resume('--accept=teacher,computation') == 2
  assert 'data: 1 image of train was added' in capsys.readouterr().err
  assert scene.resume('--accept=dta') == 2
  assert "config.accept: unknown 'dta'; did you mean 'data'?" in capsys.readouterr().err


def test_images_that_were_moved_are_the_same(scene, capsys):
  scene.pictures = scene.pictures.rename(scene.pictures.with_name('elsewhere'))
  assert scene.resume() == 0
  scene.pictures = scene.pictures.parent / 'nets' / '..' / 'elsewhere'
  assert scene.resume() == 0
  assert 'accepted' not in capsys.readouterr().err


def test_the_same_numbers_come_of_moved_images_and_a_moved_teacher(scene, tmp_path):
  """Neither path is a part of what a run is made of."""
  teacher = shutil.copytree(scene.workdir / 'teacher', tmp_path / 'taken')
  taking = f'--config.teacher.variables={teacher}/variables'
  one = scene.workdir = tmp_path / 'one'
  assert main.main(scene.command('--config.phases=teacher', taking)) == 0
  moved = teacher.rename(tmp_path / 'moved')
  phases = '--config.phases=teacher,heads,student'
  assert scene.resume(phases, f'--config.teacher.variables={moved}/../moved/variables') == 0
  shutil.rmtree(moved)
  assert scene.resume(phases, taking, '--config.student.methods=ce,kd,kd_matched') == 0
  scene.workdir, scene.pictures = tmp_path / 'two', scene.pictures.rename(tmp_path / 'pictures')
  shutil.copytree(one / 'teacher', moved)
  assert scene.resume(phases, f'--config.teacher.variables={moved}/variables') == 0
  for path, array in exported(one, 'student/kd').items():
    assert (array == exported(scene.workdir, 'student/kd')[path]).all()


def test_another_teacher_at_the_path_of_the_one_that_was_taken_is_noticed(scene, tmp_path, capsys):
  taken = shutil.copytree(scene.workdir / 'teacher/variables', tmp_path / 'taken')
  scene.workdir = tmp_path / 'one'
  taking = f'--config.teacher.variables={taken}'
  assert main.main(scene.command('--config.phases=teacher', taking)) == 0
  shutil.rmtree(taken)
  assert main.main([*scene.command('--config.phases=teacher', '--config.seed=7'),
                    f'--workdir={tmp_path}/other']) == 0
  shutil.copytree(tmp_path / 'other/teacher/variables', taken)
  capsys.readouterr()
  assert main.main(scene.command('--config.phases=teacher,heads', taking)) == 2
  assert f"config.teacher.variables: '{taken}' has changed since it" in capsys.readouterr().err


@pytest.mark.parametrize(('variable', 'value', 'expected'), [
    ('JAX_ENABLE_X64', '1', 'x64 was False and is True'),
    ('JAX_DEFAULT_PRNG_IMPL', 'rbg', "prng was 'threefry2x32' and is 'rbg'")])
def test_what_changes_bits_on_the_same_platform_is_refused(scene, variable, value, expected):
  done = subprocess.run(
      [sys.executable, '-m', 'kdih.main', *scene.command('--config.student.methods=ce,kd')[1:]],
      env={**os.environ, variable: value, 'PYTHONPATH': f'{ROOT}:{scene.nets}'}, cwd=ROOT,
      capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert f'with other versions or devices: {expected}' in done.stderr.splitlines()[-1]


def test_other_versions_are_said_and_another_number_of_devices_where_it_counts():
  before = {'jax': '1', 'devices': 1, 'platform': 'cpu', 'x64': False}
  now = {**before, 'jax': '2', 'devices': 4}
  jax, devices = "jax was '1' and is '2'", 'devices was 1 and is 4'
  assert resume._versions(before, now, {'sync_batch_norm': True}) == ([jax, devices], [])
  assert resume._versions(before, now, {'sync_batch_norm': False}) == ([jax], [devices])
  elsewhere = {**now, 'platform': 'gpu', 'x64': True}
  allowed, refused = resume._versions(before, elsewhere, {'sync_batch_norm': False})
  assert len(allowed) == 4 and refused == []
  assert resume._versions({}, now, {'sync_batch_norm': False}) == ([], [])


def test_the_options_of_the_parts_of_a_begun_sum_are_fixed(scene, capsys):
  added = '--config.student.methods=ce,mixed'
  mixed = ['--config.methods.mixed.kind=combined', '--config.methods.mixed.methods=dih,kd_std',
           '--config.methods.mixed.weights=1.0,1.0', added]
  assert scene.resume(*mixed) == 0
  capsys.readouterr()
  assert scene.resume(*mixed, '--config.methods.dih.alpha=0.5') == 2
  assert 'config.methods.dih.alpha (was 0.1, is 0.5)' in capsys.readouterr().err
  assert scene.resume(*mixed, '--config.methods.kd.alpha=0.5') == 0  # That one was not begun.


def test_a_method_that_was_begun_need_not_be_there_any_more(scene, capsys):
  mixed = ['--config.methods.mixed.kind=combined', '--config.methods.mixed.methods=kd,dih',
           '--config.methods.mixed.weights=1.0,1.0', '--config.student.methods=mixed']
  assert scene.resume(*mixed) == 0
  assert scene.resume() == 0
  capsys.readouterr()
  assert scene.resume(*mixed, '--config.methods.mixed.learning_rate=0.5') == 2  # It is remembered.
  assert 'config.methods.mixed.learning_rate (was None, is 0.5)' in capsys.readouterr().err
  assert scene.resume(*mixed) == 0


@pytest.mark.parametrize('removed', ['teacher', 'heads', 'teacher/result.json',
                                     'heads/result.json'])
def test_a_phase_that_was_removed_is_done_anew(scene, removed):
  path = scene.workdir / removed
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert scene.resume() == 0
  results = json.loads((scene.workdir / 'results.json').read_text())
  assert results['student']['kd']['accepted'] == []


def test_a_phase_that_is_another_when_done_anew_is_noticed(scene, capsys):
  path = scene.workdir / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['identity']['teacher']['variables'] = 'of another machine'
  path.write_text(json.dumps(manifest))
  shutil.rmtree(scene.workdir / 'teacher')
  assert scene.resume() == 2
  assert 'teacher: its variables have changed. ' in capsys.readouterr().err
  assert not (scene.workdir / 'student/kd').exists()
  assert scene.resume('--accept=teacher') == 0
  result, teacher, heads = (json.loads((scene.workdir / phase / 'result.json').read_text())
                            for phase in ('student/kd', 'teacher', 'heads'))
  assert result['accepted'] == ['teacher: its variables have changed']
  assert heads['identity']['teacher'] == {'variables': teacher['fingerprint']}
  assert result['identity']['teacher'] == {'variables': teacher['fingerprint']}


def test_a_cache_on_the_disk_is_of_its_images(scene, capsys):
  cached = ('--config.compute.cache=all_views', '--config.compute.cache_place=disk')
  scene.workdir = scene.workdir.with_name('cached')
  assert scene.resume(*cached) == 0
  add_image(scene)
  capsys.readouterr()
  shutil.rmtree(scene.workdir / 'student/kd')
  assert scene.resume(*cached, '--accept=data') == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'config.compute.cache: ' in line and 'was made for something else' in line
  assert 'data' in line.partition('changed: ')[2]


@pytest.mark.parametrize('stored', [
    3, [], {'data': 3}, {'data': {'splits': [1]}}, {'computation': []}, {'versions': 'x'},
    {'teacher': 'variables'}, {'teacher': [1]}, {'computation': {'methods': 3}},
    {'computation': {'methods': 'kd'}}])
def test_a_manifest_whose_identity_is_none_is_damaged(scene, capsys, stored):
  path = scene.workdir / 'manifest.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'identity': stored}))
  code = scene.resume()
  assert code in (0, 2)  # What it can be compared with.
  assert code == 0 or f'{path} is damaged' in capsys.readouterr().err


def test_a_result_whose_accepted_differences_are_none_is_damaged(scene, capsys):
  path = scene.workdir / 'student/ce/result.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'accepted': 3}))
  assert scene.resume() == 2
  expected = f'{path} is damaged (Expected `array`, got `int` - at `$.accepted`)'
  assert expected in capsys.readouterr().err


@pytest.mark.parametrize('methods', [3, ['ce'], {'ce': {'methods': 3}}])
def test_a_manifest_whose_methods_are_none_is_damaged(scene, capsys, methods):
  path = scene.workdir / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['config']['methods'] = methods
  path.write_text(json.dumps(manifest))
  assert scene.resume() == 2
  assert f'{path} is damaged (' in capsys.readouterr().err
