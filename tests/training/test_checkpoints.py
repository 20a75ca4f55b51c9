"""Checkpoints that are damaged, and disks that are full."""
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tarfile

import gcsfs
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from kdih import errors
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.runtime import devices, digests
from kdih.training import checkpoints as checkpoints_lib, metric_log, optimizer, orbax_files, state
from tests.helpers.damage import contents, empty, files, flip_a_bit, truncate
from tests.helpers.runs import ROOT, read_config
from tests.helpers.slow import slow

TX = optax.sgd(0.1, momentum=0.9)
STEPS = (1, 2, 3)


def state_at(step: int) -> state.TrainState:
  rng = np.random.default_rng(step)
  params = {'kernel': rng.normal(size=(60, 50)).astype(np.float32), 'bias': np.ones(50, np.float32)}
  fresh = jax.device_get(state.create({'params': params}, TX, 0))
  return dataclasses.replace(fresh, step=np.asarray(step, np.int32))


def save(folder, steps=STEPS, top1=lambda step: step / 10) -> checkpoints_lib.Checkpoints:
  checkpoints = checkpoints_lib.Checkpoints(folder, state_at(0))
  for step in steps:
    checkpoints.save(state_at(step), {'seconds': float(step)}, {'top1': top1(step), 'loss': 1.0})
  return checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """The checkpoints of steps 2 and 3. Tests must not change them."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save(folder)
  return folder


def copied(saved, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def opened(folder) -> checkpoints_lib.Checkpoints:
  return checkpoints_lib.Checkpoints(folder, state_at(0))


def last(checkpoints):
  """(state, meta) of the last checkpoint."""
  return checkpoints.restore_last(state_at(0))


def assert_best(checkpoints, step, lost=None):
  best = checkpoints.restore_best()
  assert digests.of(best.variables) == digests.of(state_at(step).variables)
  assert best.lost == lost


def assert_holds(checkpoints, step):
  restored, meta = last(checkpoints)
  assert int(restored.step) == step
  assert digests.of(restored) == digests.of(state_at(step))
  assert meta == {'seconds': float(step)}


def test_the_last_two_are_kept_and_the_best_variables_and_of_equal_ones_the_later(tmp_path):
  top1 = {1: .1, 2: .9, 3: .9, 4: .2, 5: .3}
  checkpoints = save(tmp_path / 'checkpoints', (1, 2, 3, 4, 5), top1.get)
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'4', '5', 'best'}
  assert [path.name for path in (tmp_path / 'checkpoints' / 'best').iterdir()] == ['3']
  assert_holds(checkpoints, 5)
  assert_best(checkpoints, 3)
  assert_best(opened(tmp_path / 'checkpoints'), 3)


def test_the_best_variables_before_each_checkpoint_are_kept(tmp_path):
  """Without the last checkpoint, those are the best that were the best before it."""
  folder = tmp_path / 'checkpoints'
  checkpoints = save(folder, (1, 2, 3, 4), {1: .5, 2: .1, 3: .2, 4: .6}.get)
  assert_best(checkpoints, 4)
  checkpoints.drop(4)
  assert_best(checkpoints, 1)
  assert [path.name for path in (folder / 'best').iterdir()] == ['1']
  assert_best(opened(folder), 1)


def stop(checkpoints, step) -> None:
  """Saves as a run does that is asked to stop."""
  checkpoints.save(state_at(step), {'seconds': float(step)}, None, scheduled=False)


def steps_in(folder) -> set[str]:
  return {path.name for path in folder.iterdir()} - {'best'}


def test_the_checkpoint_of_a_stop_gives_way_to_the_next_one_and_replaces_none(tmp_path):
  folder = tmp_path / 'checkpoints'
  checkpoints = save(folder, (2, 4))
  stop(checkpoints, 5)
  assert steps_in(folder) == {'2', '4', '5'}
  checkpoints = opened(folder)
  assert_holds(checkpoints, 5)
  assert_best(checkpoints, 4)
  stop(checkpoints, 6)
  assert steps_in(folder) == {'2', '4', '6'}
  flip_a_bit(max(files(folder / '6'), key=lambda path: path.stat().st_size))
  checkpoints = opened(folder)
  assert_holds(checkpoints, 4)
  stop(checkpoints, 7)
  shutil.copytree(folder, tmp_path / 'copy' / 'checkpoints')
  checkpoints.save(state_at(8), {'seconds': 8.0}, {'top1': 0.8, 'loss': 1.0})
  assert steps_in(folder) == {'4', '8'}
  shutil.copytree(folder / '8', tmp_path / 'copy' / 'checkpoints' / '8')  # As if killed then.
  shutil.copytree(folder / 'best' / '8', tmp_path / 'copy' / 'checkpoints' / 'best' / '8')
  assert_holds(opened(tmp_path / 'copy' / 'checkpoints'), 8)
  assert steps_in(tmp_path / 'copy' / 'checkpoints') == {'4', '8'}


class Killed(BaseException):
  """Ends a save as SIGKILL does."""


def test_a_process_that_is_killed_before_it_removes_a_checkpoint_leaves_it_to_the_next(
    tmp_path, saved, monkeypatch):
  folder, replace = copied(saved, tmp_path), os.replace

  def killed(source, *args, **kwargs):
    if pathlib.Path(source) == folder / '2':
      raise Killed
    replace(source, *args, **kwargs)

  checkpoints = opened(folder)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', killed)
    with pytest.raises(Killed):
      checkpoints.save(state_at(4), {'seconds': 4.0}, None)
  assert {'2', '3', '4'} < {path.name for path in folder.iterdir()}
  assert_holds(opened(folder), 4)
  assert sorted(path.name for path in folder.iterdir()) == ['3', '4', 'best']


def test_a_checkpoint_is_removed_at_once(tmp_path, saved, monkeypatch, capsys):
  """A process that is killed meanwhile leaves none that is half there, and damaged."""
  folder, rmdir = copied(saved, tmp_path), os.rmdir

  def killed(path, *args, **kwargs):
    rmdir(path, *args, **kwargs)
    raise Killed

  checkpoints = opened(folder)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'rmdir', killed)
    with pytest.raises(Killed):
      checkpoints.save(state_at(4), {'seconds': 4.0}, None)
  left = [path.name for path in folder.iterdir()]
  assert sorted(left) == ['3', '4', 'best', 'deleted']
  assert_holds(opened(folder), 4)
  assert sorted(path.name for path in folder.iterdir()) == ['3', '4', 'best']
  assert not capsys.readouterr().err


def test_what_a_killed_process_has_left_among_the_best_variables_is_removed(tmp_path, saved):
  folder = copied(saved, tmp_path)
  shutil.copytree(folder / 'best' / '3', folder / 'best' / '9')
  shutil.copytree(folder / 'best' / '3', folder / 'best' / '9.orbax-checkpoint-tmp')
  opened(folder)
  assert sorted(path.name for path in (folder / 'best').iterdir()) == ['2', '3']


@pytest.mark.parametrize('damage', [
    flip_a_bit, *(slow(damage)
                  for damage in (truncate, empty, os.remove))])
def test_a_damaged_checkpoint_is_never_taken_for_a_good_one(tmp_path, saved, capsys, damage):
  """Whichever file it is: the content is what was written, or the checkpoint before is taken."""
  names = [path.relative_to(saved) for path in files(saved / '3')]
  fell_back = set()
  for number, name in enumerate(names):
    folder = copied(saved, tmp_path / str(number))
    damage(folder / name)
    step = int(last(opened(folder))[0].step)
    assert_holds(opened(folder), step)
    message = capsys.readouterr().err
    assert ('the checkpoint of step 3 is damaged' in message) == (step == 2)
    if step == 2:
      assert 'the last good one is of step 2' in message
      assert (folder.parent / 'damaged' / '3').is_dir() and not (folder / '3').exists()
      fell_back.add(name.name)
  large = max(names, key=lambda name: (saved / name).stat().st_size)  # It holds the arrays.
  assert large.name in fell_back
  assert len(fell_back) >= 3


def test_a_description_that_is_nested_too_deep_is_damaged(tmp_path, saved, capsys):
  """The one that orbax's manager reads."""
  folder = copied(saved, tmp_path)
  (folder / '3' / '_CHECKPOINT_METADATA').write_text('[' * 20_000)
  assert_holds(opened(folder), 2)
  assert 'the checkpoint of step 3 is damaged (' in capsys.readouterr().err


def test_a_half_deleted_checkpoint_falls_back_and_its_step_can_be_saved_again(tmp_path, saved):
  folder = copied(saved, tmp_path)
  shutil.rmtree(folder / '3' / 'state' / 'ocdbt.process_0')
  checkpoints = opened(folder)
  assert_holds(checkpoints, 2)
  checkpoints.save(state_at(3), {'seconds': 3.0}, {'top1': 0.3, 'loss': 1.0})
  assert_holds(opened(folder), 3)


@pytest.mark.parametrize('missing', [
    'meta', 'meta/metadata', 'state', 'state/_METADATA', 'state/d',
    'state/manifest.ocdbt'])
def test_a_checkpoint_without_a_part_is_reported_as_incomplete(tmp_path, saved, capsys, missing):
  folder = copied(saved, tmp_path)
  path = folder / '2' / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert_holds(opened(folder), 3)
  assert (f'{folder}: the checkpoint of step 2 is damaged (it is incomplete) and is moved to '
          in capsys.readouterr().err)


@pytest.mark.parametrize('damage', [shutil.rmtree, lambda folder: empty(
    folder / 'variables' / 'manifest.ocdbt'), lambda folder: [
        flip_a_bit(path) for path in files(folder) if path.parent.name == 'd']],
                         ids=['removed', 'no list of arrays', 'another bit'])
def test_best_variables_that_are_lost_are_named_and_the_next_best_are_taken(
    tmp_path, capsys, damage):
  folder = tmp_path / 'checkpoints'
  save(folder, (1, 2, 3, 4), {1: .9, 2: .1, 3: .3, 4: .2}.get)
  damage(folder / 'best' / '1')
  checkpoints = opened(folder)
  message = capsys.readouterr().err
  assert 'the best variables, of step 1, are damaged (' in message and len(message) < 400
  assert_best(checkpoints, 3, lost={'step': 1, 'top1': 0.9})
  checkpoints.save(state_at(5), {}, {'top1': 0.95, 'loss': 1.0})
  assert_best(checkpoints, 5)


def test_where_the_best_variables_are_lost_the_next_best_are_kept(tmp_path):
  """Until there are better ones than those that were lost."""
  folder, top1 = tmp_path / 'checkpoints', {1: .9, 2: .2, 3: .3, 4: .85, 5: .7, 6: .6, 7: .92}

  def save_more(checkpoints, *steps):
    for step in steps:
      checkpoints.save(state_at(step), {}, {'top1': top1[step], 'loss': 1.0})
    return checkpoints

  save(folder, (1, 2, 3), top1.get)
  shutil.rmtree(folder / 'best' / '1')
  lost = {'step': 1, 'top1': 0.9}
  assert_best(save_more(opened(folder), 4, 5, 6), 4, lost)
  assert_best(opened(folder), 4, lost)
  shutil.rmtree(folder / 'best' / '4')
  assert_best(opened(folder), 5, lost)
  assert_best(save_more(opened(folder), 7), 7)


@pytest.mark.parametrize('said', ['', 'as it says'])
def test_all_processes_find_the_best_variables_damaged_or_none(
    tmp_path, capsys, monkeypatch, said):
  """This process finds the opposite of what the first one says."""
  folder = tmp_path / 'checkpoints'
  save(folder, (1, 2, 3, 4), {1: .9, 2: .1, 3: .3, 4: .2}.get)
  if not said:
    shutil.rmtree(folder / 'best' / '1')
  monkeypatch.setattr(devices, 'from_first_process', lambda _: said)
  opened(folder)
  message = capsys.readouterr().err
  assert 'of step 1, are damaged (as it says)' in message if said else not message


def test_best_variables_that_are_damaged_while_training_goes_on_are_replaced(tmp_path, capsys):
  folder = tmp_path / 'checkpoints'
  checkpoints = save(folder, (1, 2, 3, 4), {1: .9, 2: .1, 3: .3, 4: .2}.get)
  shutil.rmtree(folder / 'best' / '1')
  assert_best(checkpoints, 3, lost={'step': 1, 'top1': 0.9})
  assert ('the best variables, of step 1, are lost; those of step 3 take their place'
          in capsys.readouterr().err)


def test_damaged_best_variables_are_written_again_from_the_checkpoint_of_their_step(
    tmp_path, saved, capsys):
  folder = copied(saved, tmp_path)
  empty(folder / 'best' / '3' / 'variables' / 'manifest.ocdbt')
  assert_best(opened(folder), 3)
  assert not capsys.readouterr().err
  shutil.rmtree(folder / '3')
  shutil.rmtree(folder / '2')
  shutil.copytree(saved / '2', folder / '2')
  assert_best(opened(folder), 2)


def test_accuracies_that_were_changed_do_not_choose_the_best(tmp_path, saved):
  folder = copied(saved, tmp_path)
  path = folder / '3' / 'meta' / 'metadata'
  stored = json.loads(path.read_text())
  stored['best'] = {**stored['best'], 'step': 2}
  path.write_text(json.dumps(stored))
  assert_best(opened(folder), 2)
  assert (tmp_path / 'damaged' / '3').is_dir()


@contextlib.contextmanager
def no_file_can_be_opened():
  """As with too many open files, which tensorstore meets, too."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  next_one = os.open(os.devnull, os.O_RDONLY)  # The lowest number that is free.
  os.close(next_one)
  resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_checkpoint_that_cannot_be_read_now_is_read_later_and_never_moved(
    tmp_path, saved, monkeypatch, capsys):
  folder = copied(saved, tmp_path)
  before = contents(tmp_path)
  monkeypatch.setattr(orbax_files, '_PAUSES', (0.0,))
  with no_file_can_be_opened(), pytest.raises(OSError, match='Too many open files'):
    opened(folder)
  assert contents(tmp_path) == before
  assert_holds(opened(folder), 3)
  assert not capsys.readouterr().err


@pytest.mark.parametrize('failure', [
    OSError(errno.EIO, 'Input/output error'), OSError(errno.ESTALE, 'Stale file handle'),
    MemoryError(), ValueError('UNAVAILABLE: Error reading local file "x" [os_error_code=\'24\']')])
def test_a_read_that_fails_once_is_tried_again(tmp_path, saved, monkeypatch, capsys, failure):
  monkeypatch.setattr(orbax_files, '_PAUSES', (0.0, 0.0))
  folder = copied(saved, tmp_path)
  restore, failures = ocp.Checkpointer.restore, [failure] * 2

  def fail_first(*args, **kwargs):
    if failures:
      raise failures.pop()
    return restore(*args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', fail_first)
  assert_holds(opened(folder), 3)
  assert not failures and not capsys.readouterr().err
  assert not (tmp_path / 'damaged').exists()


def test_where_a_store_does_not_answer_nothing_is_damaged_moved_or_lost(
    tmp_path, saved, monkeypatch):
  """Tried again after every pause; a test on a disk, for what tensorstore says of a store."""
  folder, restore, pauses = copied(saved, tmp_path), ocp.Checkpointer.restore, []
  before = contents(tmp_path)

  def unanswered(checkpointer, path, **kwargs):
    if path.parts[-2:] == silent:
      raise ValueError('UNAVAILABLE: Error reading "gs://b/x": CURL error[28] Timeout was reached')
    return restore(checkpointer, path, **kwargs)

  monkeypatch.setattr(orbax_files.time, 'sleep', pauses.append)
  for silent in (('checkpoints', '3'), ('best', '3')):
    with monkeypatch.context() as patch:
      patch.setattr(ocp.Checkpointer, 'restore', unanswered)
      with pytest.raises(OSError, match='Input/output error') as raised:
        opened(folder)
    assert raised.value.filename == str(folder.parent.joinpath(
        'checkpoints', *silent[silent[0] == 'checkpoints':]))
    assert contents(tmp_path) == before
  assert pauses == [*orbax_files._PAUSES] * 2
  assert_holds(opened(folder), 3)
  assert_best(opened(folder), 3)


@pytest.mark.parametrize('unlisted', ['meta', 'state', '3'])
def test_a_folder_that_cannot_be_listed_now_is_not_damaged(tmp_path, saved, monkeypatch, unlisted):
  folder, scandir = copied(saved, tmp_path), os.scandir
  before = contents(tmp_path)

  def fail(path='.'):
    if os.path.basename(path) == unlisted:
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    return scandir(path)

  monkeypatch.setattr(orbax_files, '_PAUSES', (0.0,))
  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', fail)
    with pytest.raises(OSError, match='Stale file handle'):
      opened(folder)
  assert contents(tmp_path) == before
  assert_holds(opened(folder), 3)


def test_a_path_of_which_the_system_cannot_tell_is_not_missing(tmp_path, saved, monkeypatch):
  """Orbax takes it for missing: at each moment, the checkpoints are whole, or an error says so."""
  stat, calls, fail_at = os.stat, 0, 0

  def fail(path, *args, **kwargs):
    nonlocal calls
    if str(tmp_path) in str(path):
      calls += 1
      if calls == fail_at:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    return stat(path, *args, **kwargs)

  monkeypatch.setattr(orbax_files, '_PAUSES', (0.0,))
  monkeypatch.setattr(os, 'stat', fail)
  failures, folder = 0, copied(saved, tmp_path)
  before = {path.name for path in tmp_path.iterdir()}
  for fail_at in itertools.count(1, 5):
    calls = 0
    try:
      checkpoints = opened(folder)
    except (OSError, errors.UnreadableError):
      failures += 1
    else:
      assert checkpoints.last_step == 3 and checkpoints.last_two == [2, 3]
    if calls < fail_at:
      break
    assert {path.name for path in tmp_path.iterdir()} == before
  monkeypatch.setattr(os, 'stat', stat)
  assert fail_at > 20 and failures < 10
  assert_holds(opened(folder), 3)


def test_checkpoints_of_arrays_with_other_names_are_another_versions(tmp_path, saved):
  folder = copied(saved, tmp_path)
  before = contents(tmp_path)
  fresh = {'params': {'kernel': np.ones((60, 50), np.float32), 'scale': np.ones(50, np.float32)}}
  with pytest.raises(errors.TrainingError) as caught:
    checkpoints_lib.Checkpoints(folder, jax.device_get(state.create(fresh, TX, 0)))
  assert str(caught.value) == (
      f'{folder}: another version of kdih wrote the checkpoints, which hold '
      'opt_state/0/trace/bias, params/bias and lack opt_state/0/trace/scale, params/scale; nothing '
      'was changed. Resume with that version, or remove the folder to train the phase again')
  assert contents(tmp_path) == before


def test_the_scale_of_the_learning_rate_is_stored_as_pace(tmp_path):
  """Checkpoints of earlier versions have the same names, in the same order of their digests."""
  folder = tmp_path / 'checkpoints'
  halved = dataclasses.replace(state_at(1), learning_rate_scale=np.asarray(0.5, np.float32))
  opened(folder).save(halved, {}, None)
  with ocp.CheckpointManager(folder) as manager:
    stored = manager.restore(1, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
  assert stored.keys() - {'collections'} == {
      'step', 'seed', 'order_seed', 'pace', 'params', 'opt_state'}
  assert stored['pace'] == 0.5
  restored, _ = last(opened(folder))
  assert restored.learning_rate_scale == 0.5
  assert [path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(
      state.to_stored(state_at(0)))][:4] == ['step', 'seed', 'order_seed', 'pace']


def test_a_checkpoint_of_an_earlier_version_is_restored(tmp_path):
  """With its digest, which depends on the names of the fields."""
  with tarfile.open(ROOT / 'tests/fixtures/run.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  config = read_config('unused', 'unused')
  built = networks.build(config, DataSpec('digits', (8, 8, 1), 10))
  train = config.heads.train
  tx = optimizer.make_optimizer(
      train, optimizer.make_schedule(train, optimizer.Duration('steps', 1.0)))
  like = state.create(networks.initialise_heads(built, jax.random.key(0)), tx, 0)
  folder = tmp_path / 'run/heads/checkpoints'
  before = contents(folder)
  restored, meta = checkpoints_lib.Checkpoints(folder, like).restore_last(like)
  assert (int(restored.step), float(restored.learning_rate_scale)) == (40, 1.0)
  assert meta['seconds'] > 0
  exported = orbax_files.restore(tmp_path / 'run/heads/variables')['params']
  assert jax.tree.map(np.shape, restored.params) == jax.tree.map(np.shape, exported)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(restored.params))
  after = contents(folder)
  assert {name: after[name] for name in before} == before
  best = checkpoints_lib.Checkpoints(folder, like).restore_best()  # That version kept none apart.
  assert digests.of(best.variables) == digests.of({'params': exported})


def test_where_all_are_damaged_nothing_is_touched(tmp_path, saved):
  folder = copied(saved, tmp_path)
  for step in ('2', '3'):
    empty(folder / step / 'state' / 'manifest.ocdbt')
  before = contents(tmp_path)
  with pytest.raises(errors.TrainingError, match='every checkpoint is damaged .* nothing was'):
    opened(folder)
  assert contents(tmp_path) == before


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str):
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip('may not mount a file system')
  try:
    yield
  finally:
    subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_readable(tmp_path):
  with small_disk(tmp_path / 'disk', '160k'):
    folder = tmp_path / 'disk' / 'checkpoints'
    with pytest.raises(errors.TrainingError) as raised:
      save(folder, range(1, 9))
    message = str(raised.value)
    assert '(No space left on device)' in message and len(message) < 300
    step = int(
        message.partition('the last good checkpoint is the one of step ')[2].partition('.')[0])
    assert step >= 1
    assert_holds(opened(folder), step)


@contextlib.contextmanager
def folder_that_cannot_be_listed_once(monkeypatch, name):
  """In which orbax looks for what it has written; it takes the error for an empty folder."""
  scandir, failed = os.scandir, []

  def fail_once(path='.'):
    if os.path.basename(path).startswith(name) and not failed:
      failed.append(path)
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return scandir(path)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', fail_once)
    yield
  assert failed


def test_a_checkpoint_that_orbax_has_written_without_its_arrays_is_no_checkpoint(
    tmp_path, saved, monkeypatch, capsys):
  folder = copied(saved, tmp_path)
  checkpoints = opened(folder)
  with folder_that_cannot_be_listed_once(monkeypatch, 'state'), pytest.raises(
      errors.TrainingError, match=r'step 4 .*\(Input/output error\); the last good .* of step 3'):
    checkpoints.save(state_at(4), {'seconds': 4.0}, None)
  checkpoints = opened(folder)
  assert_holds(checkpoints, 3)
  checkpoints.save(state_at(4), {'seconds': 4.0}, None)
  assert_holds(opened(folder), 4)
  assert 'damaged' not in capsys.readouterr().err


def test_variables_that_orbax_has_written_without_their_arrays_are_an_error(tmp_path, monkeypatch):
  with folder_that_cannot_be_listed_once(monkeypatch, 'variables'), pytest.raises(
      OSError, match='Input/output error'):
    orbax_files.export(tmp_path / 'exported', state_at(1).variables, {})
  orbax_files.export(tmp_path / 'exported', state_at(1).variables, {})
  assert digests.of(orbax_files.restore(tmp_path / 'exported')) == digests.of(state_at(1).variables)


def test_variables_that_find_no_room_are_an_error_of_the_system(tmp_path):
  """tensorstore raises ValueError."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
  try:
    with pytest.raises(OSError, match='variables') as raised:
      orbax_files.export(tmp_path / 'variables', state_at(1).variables, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert raised.value.errno == errno.EFBIG
  assert not (tmp_path / 'variables').exists()


def test_events_that_find_no_room_are_an_error_of_the_system(tmp_path):
  folder = tmp_path / 'disk'
  with small_disk(folder, '8k'):
    with contextlib.suppress(OSError):
      (folder / 'fill').write_bytes(bytes(2**14))
    with pytest.raises(OSError, match='TensorBoard events: .*; No space left on device$'):
      metric_log.MetricWriter(folder, 0)


@pytest.mark.parametrize(('operation', 'words'), [
    ('save', 'the checkpoint of step 4 cannot be written to .* one of step 3'),
    ('delete', 'earlier checkpoints cannot be removed from .* one of step 4')])
def test_a_store_that_does_not_answer_while_a_checkpoint_is_saved_is_one_line(
    tmp_path, monkeypatch, operation, words):
  checkpoints = save(tmp_path / 'checkpoints', steps=(2, 3))

  def fails(*args, **kwargs):
    raise gcsfs.retry.HttpError({'code': 503, 'message': 'Backend error'})

  monkeypatch.setattr(ocp.CheckpointManager, operation, fails)
  with pytest.raises(errors.TrainingError, match=f'^{words}'):
    checkpoints.save(state_at(4), {}, None)


def test_a_process_that_is_lost_while_a_checkpoint_is_saved_is_no_error_of_the_disk(
    tmp_path, monkeypatch):
  checkpoints = save(tmp_path / 'checkpoints', steps=(2,))

  def fails(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllGather failed: Connection reset by peer')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', fails)
  with pytest.raises(jax.errors.JaxRuntimeError):
    checkpoints.save(state_at(4), {}, None)


@pytest.mark.parametrize('deleted', ['.', '2'])
def test_checkpoints_that_were_deleted_meanwhile_are_missed(tmp_path, deleted):
  """Orbax makes the folder anew, and a run would go on without what it believes to have."""
  checkpoints = save(tmp_path / 'checkpoints', steps=(2, 3))
  shutil.rmtree(tmp_path / 'checkpoints' / deleted)
  with pytest.raises(errors.TrainingError, match='step 4 cannot be written .* is gone'):
    checkpoints.save(state_at(4), {}, None)
  assert not (tmp_path / 'checkpoints' / '4').exists()
