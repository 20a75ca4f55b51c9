"""Bad input: exit code 2, one line that names the setting and the remedy, nothing written."""
import pathlib

import pytest

from kdih import main
from kdih.config import flags
from kdih.report import __main__ as report
from tests.helpers.runs import CONFIG, tiny_command

# What is set, how the line begins, and what else it says.
OVERRIDES = [
    ('teacher.name=resent20', 'config.teacher.name: ', "did you mean 'resnet20'"),
    ('student.name=no_such.nets:Net', 'config.student.name: ', 'PYTHONPATH'),
    ('student.name=tests.helpers.tiny_nets:Missing', 'config.student.name: ', 'Missing'),
    ('student.methods=ce,dhi', 'config.student.methods: ', "did you mean 'dih'"),
    ('student.methods=ce,ce', 'config.student.methods: ', 'once'),
    ('methods.kd.kind=kdd', 'config.methods.kd.kind: ', "did you mean 'kd'"),
    ('data.name=cifar1000', 'config.data.name: ', "did you mean 'cifar100'"),
    ('data.folder=/x', 'config.data.folder: ', 'config.data.name=image_folder'),
    ('data.name=image_folder', 'config.data.folder: ', 'SPLIT/CLASS/'),
    ('data.train_split=trian', 'config.data.train_split: ', 'train'),
    ('data.image_key=picture', 'config.data.image_key: ', 'image'),
    ('data.label_key=image', 'config.data.label_key: ', 'not a ClassLabel'),
    ('data.loader=disk', 'config.data.loader: ', 'memory, streaming'),
    ('data.padding_mode=edge', 'config.data.padding_mode: ', 'reflect, zeros'),
    ('data.mean=0.1,0.2', 'config.data.mean: ', '1 channel'),
    ('data.std=0.0', 'config.data.std: ', 'from 1e-6'),
    ('data.validation_fraction=1.0', 'config.data.validation_fraction: ', 'below 1'),
    ('data.validation_fraction=0.001', 'config.data.validation_fraction: ', 'has no image'),
    ('heads.taps=stage7', 'config.heads.taps: ', 'stage1, stage2'),
    ('teacher.name=tests.helpers.tiny_nets:NoTaps', 'config.heads.taps: ', 'sows no taps'),
    ('heads.kind=conv', 'config.heads.kind: ', 'flatten, gap'),
    ('student.train.schedule=linear', 'config.student.train.schedule: ', 'cosine'),
    ('heads.train.optimizer=adam', 'config.heads.train.optimizer: ', "did you mean 'adamw'"),
    ('teacher.train.unit=hours', 'config.teacher.train.unit: ', 'epochs, steps'),
    ('teacher.train.milestones=4,6', 'config.teacher.train.milestones: ',
     'config.teacher.train.length, or config.teacher.train.schedule=cosine'),
    ('teacher.train.global_batch_size=30', 'config.teacher.train.global_batch_size: ', '4 devices'),
    ('teacher.train.length=0', 'config.teacher.train.length: ', 'above 0'),
    ('methods.dih.alpha=1.5', 'config.methods.dih.alpha: ', 'from 0 to 1'),
    ('methods.kd.temperature=0.0', 'config.methods.kd.temperature: ', 'from 0.001 to 1000'),
    ('teacher.variables=/no/such/path', 'config.teacher.variables: ', 'runs/x/teacher/variables'),
    ('heads.variables=/no/such/path', 'config.heads.variables: ', 'no exported variables at'),
    ('distributed.num_processes=2', '--coordinator: ', 'is not set'),
    ('distributed.process_id=3', '--coordinator: ', 'is not set'),
    ('phases=heads', 'config.phases: ', "name 'teacher' before"),
    ('phases=teachers', 'config.phases: ', "did you mean 'teacher'"),
    ('sead=3', 'config.sead: ', "did you mean 'seed'"),
    ('seed=three', 'config.seed: ', 'a whole number from 0 to 2^32 - 1'),
    ('data.data_dir=/x\udcff', "'/x\ufffd' is not valid Unicode", 'choose another name'),
    ('data.flip=perhaps', 'config.data.flip: ', 'True or False'),
    ('data.mean=a', 'config.data.mean: ', 'a number from -10 to 10'),
    ('data.mean=123.7', 'config.data.mean: ', 'a number from -10 to 10'),  # Of pixels up to 255.
    ('dtype=float16', 'config.dtype: ', 'bfloat16'),
    ('compute.compilation_cache=a://b', 'config.compute.compilation_cache: ', 'gs://bucket'),
    ('compute.compilation_cache=~nobody-of-that-name/x', 'config.compute.compilation_cache: ',
     'HOME'),
    ('compute.compilation_cache=/dev/null/x', 'config.compute.compilation_cache: ',
     'choose a folder'),
    ('compute.teacher_dtype=half', 'config.compute.teacher_dtype: ', 'bfloat16, float32'),
]


def refused(capsys, command, workdir) -> str:
  """The one line with which the command is refused."""
  assert main.main(command) == 2
  *said, line = capsys.readouterr().err.splitlines()
  assert all(text.startswith('data: ') for text in said)  # What was read before.
  assert not workdir.exists()
  return line


@pytest.mark.parametrize(
    ('override', 'start', 'words'), OVERRIDES, ids=[case[0] for case in OVERRIDES])
def test_a_wrong_setting(tmp_path, capsys, digits_dir, override, start, words):
  workdir = tmp_path / 'w'
  line = refused(capsys, tiny_command(workdir, digits_dir, f'--config.{override}'), workdir)
  assert line.startswith(f'kdih: {start}')
  assert words in line


@pytest.mark.parametrize(('argument', 'words'), [
    ('nothing.py', 'No such file'),
    ('tiny_config.py:stepz=3',
     "kdih: --config: the config's argument: unknown 'stepz'; did you mean 'steps'? "),
    ('tiny_config.py:steps=few', 'must be a whole number')])
def test_a_config_file_that_cannot_be_read(tmp_path, capsys, argument, words):
  workdir = tmp_path / 'w'
  command = ['kdih', f'--config={CONFIG.parent / argument}', f'--workdir={workdir}']
  assert words in refused(capsys, command, workdir)


@pytest.mark.parametrize(('line', 'words'), [
    ('config.sead = 3', 'config.sead: '),
    ('config.seed = "3"', 'config.seed: '),
    ('config.data = 3', 'config.data: '),
    ('del config.data["flip"]', 'config.data.flip: is missing'),
    ('config.methods.mine = dict(kind="kd", alpha=.1)', 'config.methods.mine.'),
    ('config.teacher.kwargs.breadth = 3', 'config.teacher.name: '),
    ('raise OSError("no")', 'no'),
    ('config = = 3', 'SyntaxError')])
def test_a_config_file_with_a_mistake(tmp_path, capsys, line, words):
  path, workdir = tmp_path / 'mine.py', tmp_path / 'w'
  path.write_text((CONFIG).read_text().replace(
      '  return config\n', f'  with config.unlocked(), config.ignore_type():\n    {line}\n'
      "    config.student.methods = ('mine',) if 'mine' in config.methods else ('kd',)\n"
      '  return config\n'))
  command = ['kdih', f'--config={path}', f'--workdir={workdir}']
  assert words in refused(capsys, command, workdir)


@pytest.mark.parametrize('missing', ['config', 'workdir'])
def test_a_missing_flag(tmp_path, capsys, digits_dir, missing):
  workdir = tmp_path / 'w'
  command = [flag for flag in tiny_command(workdir, digits_dir)
             if not flag.startswith((f'--{missing}=', '--config.'))]
  assert f'--{missing}: is not set' in refused(capsys, command, workdir)


def test_a_workdir_below_a_file(tmp_path, capsys, digits_dir):
  (tmp_path / 'file').write_text('mine')
  assert main.main(tiny_command(tmp_path / 'file' / 'w', digits_dir)) == 2
  assert 'is a file; choose a folder' in capsys.readouterr().err
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize(('workdir', 'words'), [
    ('a://b', 'gs://bucket/folder'), ('a\0b', 'has a null character'),
    ('~nobody-of-that-name/x', 'has no home folder'),
    ('w\udcff', "w\ufffd' is not valid Unicode text; choose another folder")])
def test_a_workdir_that_cannot_be_opened(
    tmp_path, capsys, monkeypatch, digits_dir, workdir, words):
  monkeypatch.chdir(tmp_path)
  line = refused(capsys, tiny_command(workdir, digits_dir), pathlib.Path(workdir))
  assert line.startswith('kdih: --workdir: ') and words in line


def test_a_workdir_in_a_folder_that_is_not_unicode(tmp_path, capsys, monkeypatch, digits_dir):
  (tmp_path / '\udcff').mkdir()
  monkeypatch.chdir(tmp_path / '\udcff')
  assert "/\ufffd/w' is not valid Unicode text" in refused(
      capsys, tiny_command('w', digits_dir), pathlib.Path('w'))


def test_a_workdir_in_the_home_folder(tmp_path, monkeypatch, digits_dir):
  """A shell does not replace the ~ in `--workdir=~/w`."""
  monkeypatch.setenv('HOME', str(tmp_path))
  assert flags.read(tiny_command('~/w', digits_dir))[1] == str(tmp_path / 'w')


@pytest.mark.parametrize(('arguments', 'words'), [
    (['a://b.json'], 'WORKDIR: '), (['x', 'y', '--output=a://b'], '--output: '),
    (['x', 'y', '--output=~nobody-of-that-name/x'], '--output: ')])
def test_a_report_of_what_cannot_be_opened(capsys, arguments, words):
  assert report.main(['kdih.report', *arguments]) == 2
  line = capsys.readouterr().err
  assert line.startswith(f'kdih: {words}') and line.count('\n') == 1


@pytest.mark.skipif(not pathlib.Path('/proc').is_dir(), reason='needs a folder none can write to')
def test_a_workdir_that_cannot_be_made(capsys, digits_dir):
  workdir = pathlib.Path('/proc/kdih')
  assert refused(capsys, tiny_command(workdir, digits_dir), workdir).startswith(
      'kdih: --workdir: /proc/kdih cannot be')


def test_a_teacher_with_other_classes_or_another_architecture(
    tmp_path, capsys, finished, digits_dir):
  workdir, path = tmp_path / 'w', finished / 'teacher' / 'variables'
  command = tiny_command(workdir, digits_dir, f'--config.teacher.variables={path}',
                         '--config.teacher.name=resnet8')
  line = refused(capsys, command, workdir)
  assert line.startswith('kdih: config.teacher.variables: ')
  assert "name is 'tests.helpers.tiny_nets:TinyNet' there and 'resnet8' here" in line


def test_help_answers_with_the_flags(capsys):
  assert main.main(['kdih', '--help']) == 0
  assert '--workdir' in capsys.readouterr().out
