"""What teachers say, computed once: tables, their files, what is refused, and whole runs."""
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import exported, read_config, tiny_command

from kdih import (
  cache,
  cache_tables,
  data,
  errors,
  heard,
  heard_files,
  losses,
  main,
  modules,
  parallel,
  pipeline,
  state,
  sweep,
)

SUBSET = np.array([1, 2, 4, 7, 8, 9, 12, 13], np.int32)
ROWS = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(np.float16)
PREPROCESS = data.make_preprocess(mean=(0.5,), std=(0.5,), padding=1, padding_mode='zeros',
                                  flip=False)
SHAPE, DTYPE = (5, 2, 3), np.dtype(np.float16)
BLOCKS = ROWS[:5, :2].copy()


def expected(index, seed, step):
  slots = np.asarray(PREPROCESS.draw(index, state.step_key(seed, step)))
  return ROWS[np.searchsorted(SUBSET, index), slots].astype(np.float32)


def test_the_devices_find_the_rows_of_the_views_that_a_step_shows():
  table = heard.DeviceTable(ROWS, SUBSET, PREPROCESS)
  assert table.resident['heard'].shape == (4, 2, 9, 3)
  assert len({shard.device for shard in table.resident['heard'].addressable_shards}) == 4

  def step(state_, frozen, resident, feed):
    found = table.look_up(resident, feed['index'], state.step_key(np.uint32(5), np.int32(2)))
    return parallel.gather(found['heard'])

  index = np.array([13, 1, 9, 4, 4, 12, 2, 8], np.int32)
  found = parallel.pmap_step(step, resident_axes=table.axes)(
      (), (), table.resident, parallel.shard({'index': index}))
  np.testing.assert_array_equal(found, expected(index, 5, 2))


def test_the_host_sends_the_rows_of_the_views_that_a_step_shows():
  table = heard.HostTable(ROWS, SUBSET, PREPROCESS)
  batches = [{'index': np.array([13, 1, 9], np.int32)}, {'index': np.array([4, 4, 12], np.int32)}]
  for step, fed in enumerate(table.feeds(iter(batches), 5, 30), 30):
    np.testing.assert_array_equal(fed['heard'], expected(batches[step - 30]['index'], 5, step))


def store(folder, **identity):
  return heard_files.Store(folder, {'teacher': 'a', 'heads': 'b', **identity}, SHAPE, DTYPE, 2)


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


@pytest.mark.parametrize('changed', ['teacher', 'heads'])
def test_rows_of_something_else_are_refused_and_named(begun, changed):
  with pytest.raises(errors.ConfigError, match=rf'^config\.compute\.cache: .*changed: {changed}\.'):
    store(begun, **{changed: 'other'})


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / 'rows.bin').write_bytes(b'x' * 48),
    lambda folder: (folder / 'rows.bin').write_bytes((folder / 'rows.bin').read_bytes()[:-1]),
    lambda folder: (folder / 'rows.bin').unlink(),
    lambda folder: (folder / 'cache.json').write_text('{}'),
    lambda folder: (folder / 'cache.json').write_text('{'),
    lambda folder: (folder / 'cache.json').write_text('[1]')])
def test_damaged_rows_are_refused(begun, damage):
  damage(begun)
  with pytest.raises(errors.ConfigError, match='damaged') as caught:
    store(begun)
  assert '\n' not in str(caught.value)


def test_a_second_builder_waits_for_the_first(tmp_path):
  held, then = heard_files.lock(tmp_path), []

  def build():
    with heard_files.lock(tmp_path):
      then.append('built')

  second = threading.Thread(target=build)
  second.start()
  second.join(0.3)
  assert not then
  held.release()
  second.join(30)
  assert then == ['built']


def checked(path, *overrides, count=200):
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  built = modules.build(config, data.DataSpec('arrays', (8, 8, 1), 10))
  cache.check(config, built, path, count)


@pytest.mark.parametrize('overrides, message', [
    (['student.methods=at,sp', 'compute.cache=all_views'],
     r'config\.compute\.cache: the method at, sp needs more .*none'),
    (['student.methods=kd', 'compute.cache=views:10'],
     r"config\.compute\.cache: 'views:10' asks .* which are 9; "),
    (['student.methods=kd', 'compute.cache=all_views', 'data.padding=1000'],
     r'config\.compute\.cache_place: what the teachers say takes \S+ GB, .*host or disk, or fewer'),
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
  assert "config.compute.cache: '" in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


def run(path, finished, digits_dir, *overrides):
  """A run of kd and dih by the teachers of the `finished` run."""
  return pipeline.run(read_config(
      path, digits_dir, '--config.student.methods=kd,dih',
      *(f'--config.{role}.variables={finished / role / "variables"}'
        for role in ('teacher', 'heads')),
      *(f'--config.{item}' for item in overrides)), path)


def assert_same(one, other, tolerance):
  for method in ('kd', 'dih'):
    found, expected_ = (exported(path, f'student/{method}') for path in (one, other))
    for path, array in found.items():
      np.testing.assert_allclose(array, expected_[path], atol=tolerance, rtol=0, err_msg=path)


@pytest.fixture(autouse=True)
def nothing_kept():
  """Each test makes its own tables."""
  cache.forget()


@pytest.mark.slow
@pytest.mark.parametrize('place, loader', [
    ('device', 'memory'), ('host', 'memory'), ('disk', 'memory'), ('device', 'streaming'),
    ('disk', 'streaming')])
def test_students_are_those_that_the_teachers_teach_themselves(
    tmp_path, finished, digits_dir, place, loader, monkeypatch):
  monkeypatch.setattr(cache_tables, 'DTYPE', np.dtype(np.float32))
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views', f'compute.cache_place={place}',
      f'data.loader={loader}')
  assert_same(tmp_path, finished, 1e-6)


@pytest.mark.slow
def test_float16_changes_students_by_its_rounding(tmp_path, finished, digits_dir):
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert_same(tmp_path, finished, 1e-4)


@pytest.mark.slow
def test_fixed_views_are_seen_with_and_without_the_teacher(
    tmp_path, finished, digits_dir, monkeypatch):
  """A recipe of its own, whether or not the method can be taught from the cache."""
  monkeypatch.setattr(cache_tables, 'DTYPE', np.dtype(np.float32))
  run(tmp_path / 'cached', finished, digits_dir, 'compute.cache=views:2')
  monkeypatch.setattr(cache, 'serves', lambda *_: False)
  monkeypatch.setattr(cache, 'check', lambda *_: None)
  run(tmp_path / 'itself', finished, digits_dir, 'compute.cache=views:2')
  assert_same(tmp_path / 'cached', tmp_path / 'itself', 1e-6)
  with pytest.raises(AssertionError):
    assert_same(tmp_path / 'cached', finished, 1e-6)


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_a_whole_one_is_not_built_again(
    tmp_path, finished, digits_dir, monkeypatch):
  options = ('compute.cache=all_views', 'compute.cache_place=disk')
  add, added = heard_files.Store.add, []

  def killed(self, rows):
    if len(added) == 2:
      raise KeyboardInterrupt
    added.append(len(rows))
    add(self, rows)

  monkeypatch.setattr(heard_files.Store, 'add', killed)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, finished, digits_dir, *options)
  monkeypatch.setattr(heard_files.Store, 'add', lambda self, rows: (
      added.append(len(rows)), add(self, rows)))
  run(tmp_path, finished, digits_dir, *options)
  assert sum(added) == 2 * 160  # Of kd and of dih.
  assert_same(tmp_path, finished, 1e-4)
  cache.forget()
  (tmp_path / 'student' / 'kd' / 'result.json').unlink()
  run(tmp_path, finished, digits_dir, *options)
  assert sum(added) == 2 * 160


@pytest.mark.slow
def test_damaged_rows_end_a_run_before_its_students_train(tmp_path, finished, digits_dir):
  options = ('compute.cache=all_views', 'compute.cache_place=disk')
  run(tmp_path, finished, digits_dir, *options)
  for path in tmp_path.glob('cache/*/rows.bin'):
    path.write_bytes(bytes(path.stat().st_size))
  cache.forget()
  (tmp_path / 'student' / 'kd' / 'result.json').unlink()
  with pytest.raises(errors.ConfigError, match=r'cache: .* is damaged \(block 0 '):
    run(tmp_path, finished, digits_dir, *options)


@pytest.mark.slow
@pytest.mark.parametrize('place', ['device', 'disk'])
def test_what_teachers_say_is_computed_once_for_all_seeds_of_a_sweep(
    tmp_path, finished, digits_dir, capsys, place):
  def swept(*options):
    assert sweep.main(tiny_command(tmp_path, digits_dir, '--config.compute.cache=all_views',
                                   f'--config.compute.cache_place={place}', *options)) == 0
    return capsys.readouterr().err

  said = swept('--methods=ce,kd,dih,at', '--seeds=30,2')
  assert said.count('cache: 160 images x 9 views') == 2  # Of logits and of the mean soft label.
  assert said.count('of 160 images') == 1  # The teachers are asked once for both.
  assert said.count('at: hears more of the teacher than config.compute.cache holds') == 2
  assert_same(tmp_path / 'tiny_nets.TinyNet/tiny_nets.TinyNet/seed30', finished, 1e-4)
  files = list(tmp_path.glob('tiny_nets.TinyNet/cache/*/rows.bin'))
  assert len(files) == (2 if place == 'disk' else 0)
  cache.forget()
  assert swept('--methods=dih', '--seeds=3').count('of 160 images') == (place == 'device')
  # The teachers that there are serve without a cache too.
  assert 'of 160 images' not in swept('--methods=ce', '--seeds=4', '--config.compute.cache=none')


@pytest.mark.slow
def test_where_there_is_no_room_for_all_tables_each_is_made_when_it_is_wanted(
    tmp_path, finished, digits_dir, capsys, monkeypatch):
  """There is room for the larger one, that of dih, and not for both."""
  free = cache_tables.size((160, 9, 11)) / 0.9 + 1
  monkeypatch.setattr(cache_tables, '_free', lambda place, path: free)
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert capsys.readouterr().err.count('of 160 images') == 2
  assert_same(tmp_path, finished, 1e-4)


@pytest.mark.slow
def test_heads_that_say_what_is_not_finite_fail_dih_and_not_kd(
    tmp_path, finished, digits_dir, capsys, monkeypatch):
  said = losses.mean_soft_label
  monkeypatch.setattr(losses, 'mean_soft_label', lambda *args: said(*args)._replace(
      spread=jnp.full(args[0]['final'].shape[0], jnp.nan)))
  with pytest.raises(errors.TrainingError, match='say what is not finite in float16'):
    run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert capsys.readouterr().err.count('x 9 views x 10 numbers') == 2  # With dih's, and again.
  found, expected_ = (exported(path, 'student/kd') for path in (tmp_path, finished))
  for path, array in found.items():
    np.testing.assert_allclose(array, expected_[path], atol=1e-4, rtol=0)


def run_heads(path, finished, digits_dir, *overrides):
  pipeline.run(read_config(
      path, digits_dir, '--config.phases=teacher,heads',
      f'--config.teacher.variables={finished / "teacher" / "variables"}',
      *(f'--config.{item}' for item in overrides)), path)
  return exported(path, 'heads')


@pytest.mark.slow
@pytest.mark.parametrize('place', ['device', 'host', 'disk'])
def test_heads_learn_from_cached_taps_what_they_learn_from_the_teacher(
    tmp_path, finished, digits_dir, place, monkeypatch):
  """All nine views of the tiny images fit."""
  monkeypatch.setattr(cache_tables, 'DTYPE', np.dtype(np.float32))
  heads = run_heads(tmp_path, finished, digits_dir, 'compute.cache=all_views',
                    'compute.cache_taps=True', f'compute.cache_place={place}')
  for name, array in exported(finished, 'heads').items():
    np.testing.assert_allclose(heads[name], array, atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.slow
def test_taps_that_cannot_be_cached_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='cache_taps: is set, and .*cache is none'):
    checked(tmp_path, 'compute.cache_taps=True')
  # 4 x 4 x 4 and 2 x 2 x 8 numbers of two bytes, of 9 views of 80 % of the images.
  with pytest.raises(errors.ConfigError, match='takes 1382.40 GB'):
    checked(tmp_path, 'compute.cache_taps=True', 'compute.cache=all_views', count=10**9)
