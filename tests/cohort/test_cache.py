"""Cached teacher signals: tables, their files, and settings that are refused."""
import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.cohort.cache import lookup, store as store_lib
from kdih.data import augment
from kdih.data.spec import DataSpec
from kdih.distillation.signal import SoftLabel, TeacherSignal
from kdih.phases import cache_plan, networks
from kdih.runtime import devices
from kdih.training import state
from kdih.training.task import Batch
from tests.helpers.runs import read_config, tiny_command

SUBSET = np.array([1, 2, 4, 7, 8, 9, 12, 13], np.int32)
ROWS = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(np.float16)
PREPROCESS = augment.make_preprocess(mean=(0.5,), std=(0.5,), padding=1, padding_mode='zeros',
                                     flip=False)
# The rows are soft labels of two classes: their mean, and its spread.
LIKE = TeacherSignal(soft_label=SoftLabel(
    jax.ShapeDtypeStruct((1, 2), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)))
SHAPE, DTYPE = (5, 2, 3), np.dtype(np.float16)
BLOCKS = ROWS[:5, :2].copy()


def assert_rows(signal, rows):
  np.testing.assert_array_equal(signal.soft_label.mean, rows[:, :2])
  np.testing.assert_array_equal(signal.soft_label.spread, rows[:, 2])


def expected(index, seed, step):
  slots = np.asarray(PREPROCESS.draw(index, state.step_key(seed, step)))
  return ROWS[np.searchsorted(SUBSET, index), slots].astype(np.float32)


def test_the_devices_find_the_rows_of_the_views_that_a_step_shows():
  table = lookup.DeviceTable(ROWS, LIKE, SUBSET, PREPROCESS)
  assert table.resident['signals'].shape == (4, 2, 9, 3)
  assert len({shard.device for shard in table.resident['signals'].addressable_shards}) == 4

  def step(state_, frozen, resident, feed):
    zeros = jnp.zeros(2)
    found = table.read((), resident, Batch(zeros, zeros, feed['index']),
                       state.step_key(np.uint32(5), np.int32(2)))
    return jax.tree.map(devices.gather, found)

  index = np.array([13, 1, 9, 4, 4, 12, 2, 8], np.int32)
  found = devices.pmap_step(step, resident_axes=table.axes)(
      (), (), table.resident, devices.shard({'index': index}))
  assert_rows(found, expected(index, 5, 2))


def test_the_host_sends_the_rows_of_the_views_that_a_step_shows():
  table = lookup.HostTable(ROWS, LIKE, SUBSET, PREPROCESS)
  batches = [{'index': np.array([13, 1, 9], np.int32)}, {'index': np.array([4, 4, 12], np.int32)}]
  for step, fed in enumerate(table.feeds(iter(batches), 5, 30), 30):
    rows, index = expected(batches[step - 30]['index'], 5, step), fed['index']
    np.testing.assert_array_equal(fed['signal'], rows)
    assert_rows(table.read((), fed, Batch(index, index, index), None), rows)


def test_a_table_tells_the_shapes_of_its_signals():
  for kind in (lookup.DeviceTable, lookup.HostTable):
    found = kind(ROWS, LIKE, SUBSET, PREPROCESS).blank((), 5, (8, 8, 1))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, TeacherSignal(
        soft_label=SoftLabel(jnp.zeros((5, 2)), jnp.zeros(5))))


def store(folder, **identity):
  return store_lib.Store(folder, {'teacher': 'a', 'heads': 'b', **identity}, SHAPE, DTYPE, 2)


@pytest.fixture
def begun(tmp_path):
  """A folder with two of three blocks."""
  writing = store(tmp_path)
  writing.add(BLOCKS[:2])
  writing.add(BLOCKS[2:4])
  return tmp_path


def test_a_build_that_was_cut_off_goes_on_behind_the_last_whole_block(begun):
  with (begun / 'rows.bin').open('ab') as file:
    file.write(b'half a block')
  going_on = store(begun)
  assert going_on.done == 4
  going_on.add(BLOCKS[4:])
  assert store(begun).done == 5
  np.testing.assert_array_equal(store(begun).rows(), BLOCKS)


def one_block_more(folder) -> None:
  path = folder / 'cache.json'
  content = json.loads(path.read_text())
  path.write_text(json.dumps({**content, 'digests': [*content['digests'], 'x']}))


def test_a_folder_without_a_block_is_begun_with_blocks_of_the_size_that_is_asked_for(tmp_path):
  (tmp_path / 'cache.json').write_text(json.dumps(
      {'identity': {'teacher': 'a', 'heads': 'b'}, 'block': 10**9, 'digests': []}))
  assert store(tmp_path).block == 2


def test_a_block_is_on_the_disk_before_its_digest(begun, monkeypatch):
  path, synced, fsync = begun / 'rows.bin', [], os.fsync

  def recorded(descriptor):
    fsync(descriptor)
    synced.append(os.path.samestat(os.fstat(descriptor), path.stat())
                  and path.read_bytes() == BLOCKS.astype(DTYPE).tobytes())

  monkeypatch.setattr(os, 'fsync', recorded)
  store(begun).add(BLOCKS[4:])
  assert synced == [True, False]  # The second one is `cache.json`.


@pytest.mark.parametrize('changed', ['teacher', 'heads'])
def test_rows_of_something_else_are_refused_and_named(begun, changed):
  with pytest.raises(errors.ConfigError, match=rf'^config\.compute\.cache: .*changed: {changed}\.'):
    store(begun, **{changed: 'other'})


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / 'rows.bin').write_bytes(b'x' * 48),
    lambda folder: (folder / 'rows.bin').write_bytes((folder / 'rows.bin').read_bytes()[:-1]),
    lambda folder: (folder / 'rows.bin').unlink(),
    lambda folder: [store(folder).add(BLOCKS[4:]), one_block_more(folder)],
    lambda folder: (folder / 'cache.json').write_text('{}'),
    lambda folder: (folder / 'cache.json').write_text('{'),
    lambda folder: (folder / 'cache.json').write_text('[1]')])
def test_damaged_rows_are_refused(begun, damage):
  damage(begun)
  with pytest.raises(errors.ConfigError, match='damaged') as caught:
    store(begun)
  assert '\n' not in str(caught.value)


def test_a_second_builder_waits_for_the_first(tmp_path):
  then = []

  def build():
    with store_lib.locked(tmp_path):
      then.append('built')

  second = threading.Thread(target=build)
  with store_lib.locked(tmp_path):
    second.start()
    second.join(0.3)
    assert not then
  second.join(30)
  assert then == ['built']


def checked(path, *overrides, count=200):
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  built = networks.build(config, DataSpec('arrays', (8, 8, 1), 10))
  cache_plan.check(config, built, path, count)


@pytest.mark.parametrize('overrides, message', [
    (['student.methods=at,sp', 'compute.cache=all_views'],
     r'config\.compute\.cache: at, sp cannot use a cache, .*none'),
    (['student.methods=kd', 'compute.cache=views:10'],
     r"config\.compute\.cache: 'views:10' requires more views of an image than the 9 "),
    (['student.methods=kd', 'compute.cache=all_views', 'data.padding=1000'],
     r'config\.compute\.cache_place: the cached outputs take \S+ GB, .*host or disk, or fewer'),
])
def test_a_cache_that_cannot_be_is_refused(tmp_path, overrides, message):
  with pytest.raises(errors.ConfigError, match=message):
    checked(tmp_path, *overrides, count=10**6)
  assert not list(tmp_path.iterdir())


def test_a_cache_is_not_asked_for_where_none_is_needed(tmp_path):
  checked(tmp_path, 'student.methods=at')
  checked(tmp_path, 'student.methods=ce', 'compute.cache=all_views')
  checked(tmp_path, 'student.methods=at,kd', 'compute.cache=views:9')


@pytest.mark.parametrize('value', ['views', 'views:0', 'views:-1', 'all', 'views:2x', ''])
def test_another_word_for_the_cache_is_refused(tmp_path, digits_dir, value, capsys):
  assert main.main(tiny_command(tmp_path / 'w', digits_dir, f'--config.compute.cache={value}')) == 2
  assert capsys.readouterr().err == (
      f"kdih: config.compute.cache: is {value!r}; it must be 'none', 'all_views' or 'views:N', "
      "such as 'views:8'\n")
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_taps_that_cannot_be_cached_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='cache_taps: is True, but .*cache is none'):
    checked(tmp_path, 'compute.cache_taps=True')
  # 4 x 4 x 4 and 2 x 2 x 8 numbers of two bytes, of 9 views of 80 % of the images.
  with pytest.raises(errors.ConfigError, match='take 1382.40 GB'):
    checked(tmp_path, 'compute.cache_taps=True', 'compute.cache=all_views', count=10**9)
