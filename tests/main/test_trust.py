"""What is read is never executed, and no name that is read leads out of its folder."""
import os
import pathlib
import shutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from kdih import errors, main
from kdih.config import checks
from kdih.phases import exported_variables
from kdih.report import __main__ as report, collect
from kdih.runtime.workdir import Workdir
from kdih.sweep import __main__ as sweep
from kdih.training import orbax_files
from tests.helpers.damage import contents
from tests.helpers.made_workdirs import swept, write
from tests.helpers.runs import ROOT, read_config, tiny_command
from tests.helpers.slow import slow
from tests.helpers.sweeps import PAIR

MODEL = 'tests.helpers.tiny_nets:TinyNet'
# A run with a teacher that exists, which goes on from its last checkpoint; its student is loaded.
# Whatever is unpickled is counted by Python's own audit, and at last something is.
AUDITED = """
import pathlib, pickle, sys
sys.path.insert(0, sys.argv[1])
from kdih import main
from kdih.phases import exported_variables
from tests.helpers.runs import read_config
found, (workdir, teacher, folder) = [], sys.argv[2:]
sys.addaudithook(lambda event, args: event == 'pickle.find_class' and found.append(args))
for loader in ('memory', 'streaming'):
  path = pathlib.Path(workdir) / loader
  config = read_config(path, folder, f'--config.teacher.variables={teacher}',
                       '--config.student.methods=crd', f'--config.data.loader={loader}')
  main.run(config, path)
  (path / 'student/crd/result.json').unlink()
  main.run(config, path)
  exported_variables.load_model(
      path / 'student/crd/variables', model='tests.helpers.tiny_nets:TinyNet')
found_then = len(found)
pickle.loads(pickle.dumps(pathlib.Path()))
print(found_then, len(found) > found_then)
"""


@pytest.fixture
def student(finished, tmp_path):
  """A copy of exported variables."""
  return shutil.copytree(finished / 'student' / 'dih' / 'variables', tmp_path / 'variables')


def described(path, **fields):
  """Changes what variables say of their model, as whoever made the file might have."""
  meta = orbax_files.read_meta(path)
  exported_variables.save(
      path, orbax_files.restore(path), {**meta, 'model': {**meta['model'], **fields}})


def test_a_file_does_not_choose_what_is_imported(student, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'evil.py').write_text(
      'import pathlib\npathlib.Path(__file__).with_name("done").touch()\n'
      'from tests.helpers.tiny_nets import TinyNet as Net\n')
  described(student, name='evil:Net')
  with pytest.raises(errors.ConfigError) as raised:
    exported_variables.load_model(student)
  assert str(raised.value).endswith(
      "holds the model 'evil:Net', which is not part of kdih; to import it, name it: "
      "load_model(path, model='evil:Net')")
  assert 'evil' not in sys.modules and not (tmp_path / 'done').exists()
  model, variables, _ = exported_variables.load_model(student, model=MODEL)
  assert model.width == 2 and variables['params']
  assert not (tmp_path / 'done').exists()


def test_a_teacher_is_of_the_class_that_the_config_names(
    finished, tmp_path, monkeypatch, capsys, digits_dir):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'evil.py').write_text('1 / 0')
  teacher = shutil.copytree(finished / 'teacher' / 'variables', tmp_path / 'variables')
  described(teacher, name='evil:Net')
  assert main.main(tiny_command(tmp_path / 'w', digits_dir,
                                f'--config.teacher.variables={teacher}')) == 2
  assert f"name is 'evil:Net' there and {MODEL!r} here" in capsys.readouterr().err
  assert 'evil' not in sys.modules and not (tmp_path / 'w').exists()


def zeros(path, shape):
  """Replaces the last layer by zeros, which are small on the disk, with digests that are right."""
  meta, variables = orbax_files.read_meta(path), orbax_files.restore(path)
  variables['params']['Dense_0'] = {'kernel': np.zeros(shape, np.float32),
                                    'bias': np.zeros(shape[-1:], np.float32)}
  exported_variables.save(path, variables, meta)


def test_a_folder_of_variables_behind_a_link_is_refused(student, tmp_path):
  """Nothing behind it has been looked at: here a pipe, for which its reader would wait."""
  (student / 'meta').rename(tmp_path / 'elsewhere')
  (student / 'meta').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere' / 'metadata').unlink()
  os.mkfifo(tmp_path / 'elsewhere' / 'metadata')
  with pytest.raises(errors.ConfigError, match='meta is a link to a folder'):
    exported_variables.load_model(student)


def test_arrays_of_other_shapes_are_refused_before_they_are_read(student, monkeypatch):
  zeros(student, (1000, 3000))
  monkeypatch.setattr(orbax_files, 'restore', pytest.fail)
  with pytest.raises(errors.ConfigError, match='are not of this model'):
    exported_variables.load_model(student, model=MODEL)


def test_zeros_that_unfold_to_many_times_their_files_are_refused(student, monkeypatch):
  zeros(student, (4, 4_000_000))
  described(student, num_classes=4_000_000)
  monkeypatch.setattr(orbax_files, 'restore', pytest.fail)
  with pytest.raises(errors.ConfigError, match=r'bytes of arrays are compressed to [\d,]+\); rest'):
    exported_variables.load_model(student, model=MODEL)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('wrn_16_1', {'depth': 600_004}), slow('resnet8', {'stage_sizes': [10**6] * 3}),
    slow('vit_tiny', {'depth': 10**6})])
def test_a_description_of_a_model_of_any_depth_is_refused_at_once(student, name, kwargs):
  described(student, name=name, kwargs=kwargs)
  with pytest.raises(errors.ConfigError, match='has far more layers than the variables have arra'):
    exported_variables.load_model(student)


def test_links_in_a_run_from_elsewhere_are_not_written_through(
    tmp_path, finished, digits_dir, capsys):
  workdir, outside = shutil.copytree(finished, tmp_path / 'w'), tmp_path / 'outside'
  outside.mkdir()
  (outside / 'notes.txt').write_text('mine')
  for name, target in (('comparison', outside), ('teacher/metrics.jsonl', outside / 'notes.txt'),
                       ('heads/variables', outside), ('student/kd/checkpoints/best', outside)):
    path = workdir / name
    if path.exists():
      path.rename(path.with_name('aside'))
    path.symlink_to(target)
    assert main.main(tiny_command(workdir, digits_dir)) == 2
    assert f'{path} is a symbolic link' in capsys.readouterr().err
    if name == 'comparison':
      assert report.main(['report', str(workdir)]) == 2
      assert f'{path} is a symbolic link' in capsys.readouterr().err
    path.unlink()
    if path.with_name('aside').exists():
      path.with_name('aside').rename(path)
  (workdir / 'comparison').mkdir()
  (workdir / 'comparison' / 'pictures').symlink_to(outside)
  assert report.main(['report', str(workdir)]) == 2
  assert contents(outside) == {'notes.txt': b'mine'}


@pytest.mark.parametrize('name', ['report.md', 'student/kd/metrics.jsonl', 'curves.png'])
def test_a_folder_in_the_place_of_a_file_is_refused_before_a_run_begins(
    tmp_path, digits_dir, capsys, name):
  (tmp_path / name).mkdir(parents=True)
  assert main.main(tiny_command(tmp_path, digits_dir)) == 2
  assert f'--workdir: {tmp_path / name} is a folder, and a file' in capsys.readouterr().err
  assert contents(tmp_path) == {}
  assert report.main(['report', str(tmp_path / 'run'), f'--output={tmp_path}']) == 2
  assert f'--output: {tmp_path / name} is a folder, and a file' in capsys.readouterr().err


def test_what_is_written_to_a_workdir_is_known(finished):
  written = {path.relative_to(finished).parts[0] for path in Workdir(finished).written(report=True)}
  assert written | {'manifest.json'} == {
      path.name for path in finished.iterdir() if not path.name.endswith('.lock')}


@pytest.mark.parametrize('name', ['report.md', 'training_curves.png', 'teacher/metrics.jsonl',
                                  'teacher/variables/mine.txt', 'student/kd/parameters.txt'])
def test_files_of_others_are_not_overwritten_by_a_run(tmp_path, digits_dir, capsys, name):
  write(tmp_path / name, 'mine')
  write(tmp_path / 'notes.txt', 'mine')
  assert main.main(tiny_command(tmp_path, digits_dir)) == 2
  first = '/'.join(name.split('/')[:3 if name.startswith('student') else 2])
  assert (f'kdih: --workdir: {tmp_path / first} could be overwritten, and is not known to be '
          f'of a run, because {tmp_path}/manifest.json is missing' in capsys.readouterr().err)
  assert contents(tmp_path) == {name: b'mine', 'notes.txt': b'mine'}


@pytest.mark.parametrize('name', ['teacher/mine.txt', f'{PAIR}/seed1/student/ce/metrics.jsonl'])
def test_files_of_others_are_not_overwritten_by_a_sweep(tmp_path, digits_dir, capsys, name):
  name = name if '/seed1/' in name else f'{PAIR.split("/")[0]}/{name}'
  write(tmp_path / name, 'mine')
  write(tmp_path / 'report.md', 'of a comparison')
  assert sweep.main(tiny_command(tmp_path, digits_dir, '--methods=ce', '--seeds=1')) == 2
  assert (f'kdih: --workdir: {tmp_path / name} could be overwritten, and is not known'
          in capsys.readouterr().err)
  assert contents(tmp_path) == {name: b'mine', 'report.md': b'of a comparison'}


def test_a_pipe_in_the_folder_of_a_run_is_refused(tmp_path, digits_dir, capsys):
  """Orbax would wait for its other end when it removes what is in the place of a checkpoint."""
  (tmp_path / 'student/dih/checkpoints').mkdir(parents=True)
  os.mkfifo(tmp_path / 'student/dih/checkpoints/4')
  assert main.main(tiny_command(tmp_path, digits_dir)) == 2
  assert 'checkpoints/4 is neither a file nor a folder; remove it' in capsys.readouterr().err


@pytest.mark.parametrize(('program', 'inner'), [(main, ''), (sweep, f'{PAIR}/seed1/')])
def test_a_file_in_the_place_of_a_folder_is_refused_before_a_run_begins(
    tmp_path, digits_dir, capsys, program, inner):
  write(tmp_path / f'{inner}student', 'mine')
  assert program.main(tiny_command(tmp_path, digits_dir, '--config.sweep.seeds=1')) == 2
  assert (f'--workdir: {tmp_path}/{inner}student is a file; choose a folder'
          in capsys.readouterr().err)
  assert contents(tmp_path) == {f'{inner}student': b'mine'}


def test_a_run_in_the_folder_of_a_run_of_a_sweep_is_refused(tmp_path, digits_dir, capsys):
  before = contents(swept(tmp_path, 'ce', seeds=(30,)))
  assert main.main(tiny_command(tmp_path / 'resnet110/resnet8/seed30', digits_dir)) == 2
  assert (f'seed30 is the folder of a run of the sweep in {tmp_path}, whose teacher it shares'
          in capsys.readouterr().err)
  assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_workdir_may_be_a_link(tmp_path, finished, digits_dir):
  shutil.copytree(finished, tmp_path / 'w')
  (tmp_path / 'link').symlink_to(tmp_path / 'w')
  assert main.main(tiny_command(tmp_path / 'link', digits_dir)) == 0


@pytest.mark.parametrize('name', ['../../x', '..', '.x', '/tmp/x', 'a/b', 'a\\b', '', 'x' * 101,
                                  'a b', 'a\nb', 'é'])
def test_a_method_that_is_named_like_a_path_is_refused(name):
  config = read_config('unused', 'unused')
  with config.unlocked():
    config.methods = ml_collections.ConfigDict(
        {**config.methods.to_dict(), name: {'kind': 'ce'}}, allow_dotted_keys=True)
  with pytest.raises(errors.ConfigError, match='^config.methods[.].*: the name must be usable as '):
    checks.check(config)


PATHS = ['../../../out', '..', '../..', '/etc', 'a/../../../../b', '\0', '', '.']


@pytest.mark.parametrize('name', PATHS)
@pytest.mark.parametrize('place', ['teacher', 'student', 'method'])
def test_names_in_a_sweep_lead_nowhere_else(tmp_path, monkeypatch, name, place):
  folder = swept(tmp_path / 'in', 'ce', seeds=(30,))
  asked = {'teacher': 'resnet110', 'student': 'resnet8', 'method': 'ce', place: name}
  write(folder / 'sweep.json', [{'pairs': [[asked['teacher'], asked['student'], [asked['method']]]],
                                 'left_out': {}, 'seeds': [30], 'config': {}}])
  looked_at = watch(monkeypatch)
  runs, (problem,) = collect.collect([folder])
  assert len(runs) == 1
  # Folders of models are named as their import paths, with dots in place of colons and slashes.
  is_folder = place != 'method' and name in ('../../../out', '/etc', 'a/../../../../b')
  assert ('not begun: ' if is_folder else 'sweep.json is damaged (`pairs` holds a ') in problem
  assert looked_at and all(path.resolve().is_relative_to(folder) for path in looked_at)


def watch(monkeypatch):
  """Every path of which it is asked whether it is a folder."""
  asked, is_dir = [], pathlib.Path.is_dir

  def recorded(self, *args, **kwargs):
    if '\0' not in str(self):
      asked.append(self)
    return is_dir(self, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, 'is_dir', recorded)
  return asked


@pytest.mark.parametrize('seed', ['/../../../x', -1, 1.5, None])
def test_seeds_in_a_sweep_are_numbers(tmp_path, seed):
  folder = swept(tmp_path / 'in', 'ce', seeds=(30,))
  write(folder / 'sweep.json', [{'pairs': [], 'left_out': {}, 'seeds': [seed], 'config': {}}])
  problem, = collect.collect([folder])[1]
  assert problem.startswith(f'{folder}/sweep.json is damaged (Expected `int`')
  assert 'at `$[0].seeds[0]`' in problem


@pytest.mark.parametrize('field', ['data', 'teacher', 'student'])
def test_names_in_a_manifest_do_not_choose_where_the_report_writes(tmp_path, field, capsys):
  folder = swept(tmp_path / 'in', 'ce', 'kd', **{f'{field}.name': '../../../out/<b>'})
  assert report.main(['report', str(folder)]) == 0
  elsewhere = {path for path in tmp_path.rglob('*') if 'comparison' not in path.parts}
  assert {path.suffix for path in elsewhere} == {'', '.json'}
  assert {path.name for path in tmp_path.iterdir()} == {'in'}
  assert '<b>' not in (folder / 'comparison' / 'index.html').read_text()


@pytest.mark.slow
def test_nothing_is_unpickled_when_a_run_is_resumed_and_variables_are_loaded(
    tmp_path, finished, digits_dir):
  command = [sys.executable, '-c', AUDITED, str(ROOT), str(tmp_path),
             str(finished / 'teacher' / 'variables'), digits_dir]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.splitlines()[-1] == '0 True'
