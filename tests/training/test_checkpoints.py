"""Checkpoints that are damaged, and disks that are full."""
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from kdih import errors
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.runtime import digests
from kdih.training import checkpoints as checkpoints_lib, metric_log, optimizer, state
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


def assert_holds(checkpoints, step):
  restored, meta = checkpoints.restore_last()
  assert int(restored.step) == step
  assert digests.of(restored) == digests.of(state_at(step))
  assert meta == {'seconds': float(step)}


def test_the_last_two_and_the_best_are_kept_and_of_equal_ones_the_later(tmp_path):
  top1 = {1: .1, 2: .9, 3: .9, 4: .2, 5: .3}
  checkpoints = save(tmp_path / 'checkpoints', (1, 2, 3, 4, 5), top1.get)
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'3', '4', '5'}
  assert_holds(checkpoints, 5)
  assert int(checkpoints.restore_best()[0].step) == 3


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
    step = int(checkpoints_lib.Checkpoints(folder, state_at(0)).restore_last()[0].step)
    assert_holds(checkpoints_lib.Checkpoints(folder, state_at(0)), step)
    message = capsys.readouterr().err
    assert ('the checkpoint of step 3 is damaged' in message) == (step == 2)
    if step == 2:
      assert 'the last good one is of step 2' in message
      assert (folder.parent / 'damaged' / '3').is_dir() and not (folder / '3').exists()
      fell_back.add(name.name)
  large = max(names, key=lambda name: (saved / name).stat().st_size)  # It holds the arrays.
  assert large.name in fell_back
  assert len(fell_back) >= 3


def test_a_half_deleted_checkpoint_falls_back_and_its_step_can_be_saved_again(tmp_path, saved):
  folder = copied(saved, tmp_path)
  shutil.rmtree(folder / '3' / 'state' / 'ocdbt.process_0')
  checkpoints = checkpoints_lib.Checkpoints(folder, state_at(0))
  assert_holds(checkpoints, 2)
  checkpoints.save(state_at(3), {'seconds': 3.0}, {'top1': 0.3, 'loss': 1.0})
  assert_holds(checkpoints_lib.Checkpoints(folder, state_at(0)), 3)


@pytest.mark.parametrize('missing', [
    'meta', 'meta/metadata', 'metrics', 'state', 'state/_METADATA', 'state/d',
    'state/manifest.ocdbt'])
def test_a_checkpoint_without_a_part_is_reported_as_incomplete(tmp_path, saved, capsys, missing):
  folder = copied(saved, tmp_path)
  path = folder / '2' / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert_holds(checkpoints_lib.Checkpoints(folder, state_at(0)), 3)
  assert (f'{folder}: the checkpoint of step 2 is damaged (it is incomplete) and is moved to '
          in capsys.readouterr().err)


def test_the_best_one_that_is_left_is_taken_where_the_best_is_damaged(tmp_path, capsys):
  folder = tmp_path / 'checkpoints'
  save(folder, top1={1: .9, 2: .1, 3: .2}.get)
  empty(folder / '1' / 'meta' / 'metadata')
  checkpoints = checkpoints_lib.Checkpoints(folder, state_at(0))
  assert 'step 1 is damaged' in capsys.readouterr().err
  assert_holds(checkpoints, 3)
  assert int(checkpoints.restore_best()[0].step) == 3


def test_accuracies_that_were_changed_do_not_choose_the_best(tmp_path, saved):
  folder = copied(saved, tmp_path)
  path = folder / '2' / 'metrics' / 'metrics'
  path.write_text(json.dumps({'top1': 0.9, 'loss': 1.0}))
  assert int(checkpoints_lib.Checkpoints(folder, state_at(0)).restore_best()[0].step) == 3
  assert (tmp_path / 'damaged' / '2').is_dir()


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
  checkpoints_lib.Checkpoints(folder, state_at(0)).save(halved, {}, None)
  with ocp.CheckpointManager(folder) as manager:
    stored = manager.restore(1, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
  assert stored.keys() - {'collections'} == {
      'step', 'seed', 'order_seed', 'pace', 'params', 'opt_state'}
  assert stored['pace'] == 0.5
  restored, _ = checkpoints_lib.Checkpoints(folder, state_at(0)).restore_last()
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
  restored, meta = checkpoints_lib.Checkpoints(folder, like).restore_last()
  assert (int(restored.step), float(restored.learning_rate_scale)) == (40, 1.0)
  assert meta['seconds'] > 0
  exported = checkpoints_lib.restore(tmp_path / 'run/heads/variables')['params']
  assert jax.tree.map(np.shape, restored.params) == jax.tree.map(np.shape, exported)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(restored.params))
  assert contents(folder) == before


def test_where_all_are_damaged_nothing_is_touched(tmp_path, saved):
  folder = copied(saved, tmp_path)
  for step in ('2', '3'):
    empty(folder / step / 'state' / 'manifest.ocdbt')
  before = contents(tmp_path)
  with pytest.raises(errors.TrainingError, match='every checkpoint is damaged .* nothing was'):
    checkpoints_lib.Checkpoints(folder, state_at(0))
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
    assert_holds(checkpoints_lib.Checkpoints(folder, state_at(0)), step)


def test_events_that_find_no_room_are_an_error_of_the_system(tmp_path):
  folder = tmp_path / 'disk'
  with small_disk(folder, '8k'):
    with contextlib.suppress(OSError):
      (folder / 'fill').write_bytes(bytes(2**14))
    with pytest.raises(OSError, match='TensorBoard events: .*; No space left on device$'):
      metric_log.MetricWriter(folder, 0)


@pytest.mark.parametrize('deleted', ['.', '2'])
def test_checkpoints_that_were_deleted_meanwhile_are_missed(tmp_path, deleted):
  """Orbax makes the folder anew, and a run would go on without what it believes to have."""
  checkpoints = save(tmp_path / 'checkpoints', steps=(2, 3))
  shutil.rmtree(tmp_path / 'checkpoints' / deleted)
  with pytest.raises(errors.TrainingError, match='step 4 cannot be written .* is gone'):
    checkpoints.save(state_at(4), {}, None)
  assert not (tmp_path / 'checkpoints' / '4').exists()
