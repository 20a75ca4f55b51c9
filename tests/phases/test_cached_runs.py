"""Whole runs and sweeps that are taught from a cache."""
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.cohort import cache
from kdih.cohort.cache import build, store
from kdih.methods import dih
from kdih.phases import cache_plan
from kdih.sweep import __main__ as sweep
from tests.helpers.runs import exported, read_config, tiny_command
from tests.helpers.sweeps import PAIR


def run(path, finished, digits_dir, *overrides):
  """A run of kd and dih by the teachers of the `finished` run."""
  return main.run(read_config(
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
  monkeypatch.setattr(build, 'DTYPE', np.dtype(np.float32))
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views', f'compute.cache_place={place}',
      f'data.loader={loader}')
  assert_same(tmp_path, finished, 1e-6)


@pytest.mark.slow
def test_float16_changes_students_by_its_rounding(tmp_path, finished, digits_dir):
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert_same(tmp_path, finished, 1e-4)


@pytest.mark.slow
def test_cached_members_are_one_table_for_every_variant_of_dih(
    tmp_path, finished, digits_dir, capsys):
  methods = ('kd', 'dih', 'dih_std', 'dih_learnt')
  of_all = f'student.methods={",".join(methods)}'
  run(tmp_path / 'live', finished, digits_dir, of_all)
  capsys.readouterr()
  run(tmp_path / 'cached', finished, digits_dir, of_all, 'compute.cache=all_views',
      'compute.cache_members=True')
  log = capsys.readouterr().err
  assert log.count('160 images x 9 views x 10 numbers') == 1  # Of kd.
  assert log.count('160 images x 9 views x 30 numbers') == 1  # Three members, ten classes.
  assert log.count('160 images x 9 views') == 2
  assert log.count('of 160 images') == 1  # The teachers run once for both.
  for method in methods:
    found, expected = (exported(tmp_path / name, f'student/{method}')
                       for name in ('cached', 'live'))
    for path, array in found.items():
      np.testing.assert_allclose(array, expected[path], atol=1e-3, rtol=0, err_msg=path)


@pytest.mark.slow
def test_fixed_views_are_seen_with_and_without_the_teacher(
    tmp_path, finished, digits_dir, monkeypatch):
  """The views are the same whether or not the method can use the cache."""
  monkeypatch.setattr(build, 'DTYPE', np.dtype(np.float32))
  run(tmp_path / 'cached', finished, digits_dir, 'compute.cache=views:2')
  monkeypatch.setattr(cache_plan, 'serves', lambda *_: False)
  monkeypatch.setattr(cache_plan, 'check', lambda *_: None)
  run(tmp_path / 'itself', finished, digits_dir, 'compute.cache=views:2')
  assert_same(tmp_path / 'cached', tmp_path / 'itself', 1e-6)
  with pytest.raises(AssertionError):
    assert_same(tmp_path / 'cached', finished, 1e-6)


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_a_whole_one_is_not_built_again(
    tmp_path, finished, digits_dir, monkeypatch):
  options = ('compute.cache=all_views', 'compute.cache_place=disk')
  add, added = store.Store.add, []

  def killed(self, rows):
    if len(added) == 2:
      raise KeyboardInterrupt
    added.append(len(rows))
    add(self, rows)

  monkeypatch.setattr(store.Store, 'add', killed)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, finished, digits_dir, *options)
  monkeypatch.setattr(store.Store, 'add', lambda self, rows: (
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

  teacher = PAIR.split('/')[0]
  shutil.copytree(finished, tmp_path / teacher)  # Its teachers knew of no cache.
  log = swept('--methods=ce,kd,dih,at', '--seeds=30,2')
  assert 'teacher: epoch' not in log and 'heads: epoch' not in log
  assert log.count('cache: 160 images x 9 views') == 2  # Of logits and of the mean soft label.
  assert log.count('of 160 images') == 1  # The teachers run once for both.
  assert log.count('at: runs its teachers in every step') == 2
  assert_same(tmp_path / PAIR / 'seed30', finished, 1e-4)
  files = list(tmp_path.glob(f'{teacher}/cache/*/rows.bin'))
  assert len(files) == (2 if place == 'disk' else 0)
  cache.forget()
  assert swept('--methods=dih', '--seeds=3').count('of 160 images') == (place == 'device')


@pytest.mark.slow
def test_where_there_is_no_room_for_all_tables_each_is_made_when_it_is_wanted(
    tmp_path, finished, digits_dir, capsys, monkeypatch):
  """There is room for the larger one, that of dih, and not for both."""
  free = build.size((160, 9, 11)) / 0.9 + 1
  monkeypatch.setattr(build, '_free', lambda place, path: free)
  run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert capsys.readouterr().err.count('of 160 images') == 2
  assert_same(tmp_path, finished, 1e-4)


@pytest.mark.slow
def test_heads_that_say_what_is_not_finite_fail_dih_and_not_kd(
    tmp_path, finished, digits_dir, capsys, monkeypatch):
  mean_soft_label = dih.mean_soft_label
  monkeypatch.setattr(dih, 'mean_soft_label', lambda *args: mean_soft_label(*args)._replace(
      spread=jnp.full(args[0].shape[0], jnp.nan)))
  with pytest.raises(errors.TrainingError, match='signal is not finite in float16'):
    run(tmp_path, finished, digits_dir, 'compute.cache=all_views')
  assert capsys.readouterr().err.count('x 9 views x 10 numbers') == 2  # With dih's, and again.
  found, expected_ = (exported(path, 'student/kd') for path in (tmp_path, finished))
  for path, array in found.items():
    np.testing.assert_allclose(array, expected_[path], atol=1e-4, rtol=0)


def run_heads(path, finished, digits_dir, *overrides):
  main.run(read_config(
      path, digits_dir, '--config.phases=teacher,heads',
      f'--config.teacher.variables={finished / "teacher" / "variables"}',
      *(f'--config.{item}' for item in overrides)), path)
  return exported(path, 'heads')


@pytest.mark.slow
@pytest.mark.parametrize('place', ['device', 'host', 'disk'])
def test_heads_learn_from_cached_taps_what_they_learn_from_the_teacher(
    tmp_path, finished, digits_dir, place, monkeypatch):
  """All nine views of the tiny images fit."""
  monkeypatch.setattr(build, 'DTYPE', np.dtype(np.float32))
  heads = run_heads(tmp_path, finished, digits_dir, 'compute.cache=all_views',
                    'compute.cache_taps=True', f'compute.cache_place={place}')
  for name, array in exported(finished, 'heads').items():
    np.testing.assert_allclose(heads[name], array, atol=1e-6, rtol=0, err_msg=name)
