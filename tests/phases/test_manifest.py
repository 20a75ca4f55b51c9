"""What a run may begin with is decided, and recorded, while no other command changes it."""
import json
import logging
import pathlib
import shutil
import threading

import pytest

from kdih import errors, main
from kdih.phases import pipeline
from kdih.runtime import files
from kdih.runtime.workdir import Workdir
from kdih.sweep import plan
from tests.helpers.made_results import heads, result
from tests.helpers.made_workdirs import write
from tests.helpers.runs import read_config, tiny_command


def changed(path: pathlib.Path, *keys: str, value) -> None:
  """Changes a value in a JSON file."""
  content = inner = json.loads(path.read_text())
  for key in keys[:-1]:
    inner = inner[key]
  inner[keys[-1]] = value
  path.write_text(json.dumps(content))


def contents(workdir: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """What all files but locks hold."""
  return {path: path.read_bytes() for path in workdir.rglob('*')
          if path.is_file() and path.suffix != '.lock' and path.name != '.lock'}


def another_seed(workdir):
  changed(workdir / 'manifest.json', 'config', 'seed', value=7)


def other_data(workdir):
  changed(workdir / 'manifest.json', 'identity', 'data', 'splits', 'train', 'images', value=3)


def another_existing_teacher(workdir):
  changed(workdir / 'manifest.json', 'config', 'teacher', 'variables', value='/elsewhere')
  changed(workdir / 'manifest.json', 'identity', 'teacher', 'variables', value='of the other')
  changed(workdir / 'teacher/result.json', 'fingerprint', value='of the other')


@pytest.mark.parametrize(('change', 'said'), [
    (another_seed, 'begun with other settings: config.seed (was 7, is 30). '),
    (other_data, 'begun with other data: 197 images of train were added. '),
    (another_existing_teacher, 'has changed since it was copied to '),
], ids=lambda value: getattr(value, '__name__', ''))
def test_what_another_command_did_after_the_checks_is_noticed_under_the_lock(
    tmp_path, finished, digits_dir, capsys, monkeypatch, change, said):
  workdir, checked = tmp_path / 'w', pipeline.prepare_run
  before = {}

  def prepare_run(*args):
    experiment = checked(*args)
    assert not workdir.exists()
    shutil.copytree(finished, workdir)  # Another command begins and ends here.
    change(workdir)
    before.update(contents(workdir))
    return experiment

  monkeypatch.setattr(pipeline, 'prepare_run', prepare_run)
  existing = ([f'--config.teacher.variables={finished}/teacher/variables']
              if change is another_existing_teacher else [])
  assert main.main(tiny_command(workdir, digits_dir, *existing)) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith('kdih: ') and said in line
  assert contents(workdir) == before


@pytest.mark.parametrize('phase', ['teacher', 'heads'])
def test_variables_that_have_gone_since_the_checks_are_refused_with_their_setting(tmp_path, phase):
  variables = tmp_path / 'variables'
  variables.mkdir()
  write(tmp_path / 'w' / phase / 'result.json', result(0.8) if phase == 'teacher' else heads())
  config = read_config('unused', 'unused', f'--config.{phase}.variables={variables}')
  with pytest.raises(errors.ConfigError) as raised:
    pipeline.check_copied(config, Workdir(tmp_path / 'w'))
  assert str(raised.value).startswith(
      f"config.{phase}.variables: no exported variables at '{variables}'; give the ")


def test_the_manifest_keeps_the_methods_of_sweeps_that_begin_at_the_same_time(
    tmp_path, finished, digits_dir, monkeypatch):
  """One stops between reading and writing until the other has written, or waits for the lock."""
  workdir, write = shutil.copytree(finished, tmp_path / 'w'), Workdir.open
  reading, going_on = threading.Event(), threading.Event()

  class Waits(logging.Handler):
    def emit(self, record):
      if 'waits for another process' in record.getMessage():
        going_on.set()

  def stopped(self, *args, **kwargs):
    if not reading.is_set():
      reading.set()
      assert going_on.wait(60)
    write(self, *args, **kwargs)

  monkeypatch.setattr(Workdir, 'open', stopped)
  one, other = (pipeline.prepare_run(plan.pairs(read_config(
      workdir, digits_dir, f'--config.sweep.methods={method}',
      '--config.sweep.alphas=0.5'))[0].config, workdir) for method in ('kd', 'dih'))
  handler = Waits()
  files.logger.addHandler(handler)
  try:
    first = threading.Thread(target=one.open)
    first.start()
    assert reading.wait(60)
    other.open()
    going_on.set()
    first.join()
  finally:
    files.logger.removeHandler(handler)
  manifest = json.loads((workdir / 'manifest.json').read_text())
  variants = {'kd_alpha=5e-1', 'dih_alpha=5e-1'}
  assert variants <= manifest['config']['methods'].keys()
  assert variants <= manifest['identity']['computation']['methods'].keys()


def test_phases_without_a_manifest_are_those_of_an_unknown_config(
    tmp_path, finished, digits_dir, capsys):
  workdir = shutil.copytree(finished, tmp_path / 'w')
  (workdir / 'manifest.json').unlink()
  before, command = contents(workdir), tiny_command(workdir, digits_dir, '--config.seed=99')
  assert main.main(command) == 2
  line, = capsys.readouterr().err.splitlines()
  assert (f'{workdir}/teacher/checkpoints could be overwritten, and is not known to be of a '
          f'run, because {workdir}/manifest.json is missing' in line and '--accept=config' in line)
  assert contents(workdir) == before
  assert main.main([*command, '--accept=config']) == 0
  assert json.loads((workdir / 'manifest.json').read_text())['accepted'] == [
      'config: manifest.json is missing, which holds the settings of its phases']
