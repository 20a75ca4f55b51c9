"""Variants of methods: other weights of the teachers, other learning rates."""
import json
import re

import numpy as np
import pytest
from hypothesis import given, strategies

from kdih import errors
from kdih.config import checks, method_presets
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.sweep import variants
from tests.helpers.runs import exported, read_config
from tests.helpers.sweeps import PAIR, run


def config(alphas=(), rates=()):
  config = read_config('unused', 'unused')
  config.sweep.update(alphas=alphas, learning_rates=rates)
  return config


def test_every_method_comes_with_every_value():
  expanded, names = variants.expand(config((0.1, 0.25), (0.1, 0.02)), ('ce', 'kd'))
  assert names == ('ce', 'ce_lr=2e-2', 'kd', 'kd_lr=2e-2', 'kd_alpha=25e-2',
                   'kd_alpha=25e-2_lr=2e-2')
  plain = expanded.methods.kd.to_dict()
  assert expanded.methods['kd_alpha=25e-2_lr=2e-2'].to_dict() == {
      **plain, 'alpha': 0.25, 'learning_rate': 0.02}
  assert 'learning_rate' not in plain
  rates = [method_presets.training(expanded, name).learning_rate for name in names]
  assert rates == [0.1, 0.02, 0.1, 0.02, 0.1, 0.02]
  assert expanded.student.train.learning_rate == 0.1
  checks.check(expanded)


def test_without_values_nothing_changes():
  given = config()
  expanded, names = variants.expand(given, ('ce', 'kd'))
  assert names == ('ce', 'kd') and expanded.to_dict() == given.to_dict()


def test_an_entry_keeps_its_name_at_its_own_values():
  tuned = config((0.5,), (0.3, 0.1))
  tuned.methods.kd = {**tuned.methods.kd.to_dict(), 'learning_rate': 0.3, 'alpha': 0.5}
  assert variants.expand(tuned, ('kd',))[1] == ('kd', 'kd_lr=1e-1')


@given(strategies.floats(1e-8, 1e8))
def test_a_name_tells_the_number_exactly(number):
  name = variants.expand(config((), (number,)), ('ce',))[1][0]
  assert float(name.partition('=')[2] or 0.1) == number and '.' not in name


def test_variants_are_alike_and_others_are_not():
  expanded, names = variants.expand(config((0.1, 0.5), (0.02,)), ('kd', 'kd_matched', 'dih'))
  assert variants.alike(expanded, names) == [
      ('kd_lr=2e-2', 'kd_alpha=5e-1_lr=2e-2'),
      ('kd_matched_lr=2e-2', 'kd_matched_alpha=5e-1_lr=2e-2'),
      ('dih_lr=2e-2', 'dih_alpha=5e-1_lr=2e-2')]
  with expanded.ignore_type():
    expanded.methods['dih_lr=2e-2'].alpha = (0.1, 0.0, 0.1)  # Another soft label.
  assert len(variants.alike(expanded, names)) == 4


@pytest.mark.parametrize('settings, message', [
    ('--methods=kd --alphas=2.0', r'config.sweep.alphas: is 2.0; it must be a number from 0 to 1'),
    ('--methods=kd --alphas=a', r"config.sweep.alphas: is 'a'; it must be a number from 0 to 1"),
    ('--methods=kd --alphas=0.5,0.5', r'config.sweep.alphas: is \(0.5, 0.5\); it must hold every'),
    ('--methods=kd --learning_rates=0.0', r'config.sweep.learning_rates: is 0.0; it must be'),
    ('--methods=ce --alphas=0.5', r'config.sweep.alphas: is set, but no method of ce has an alpha'),
    ('--methods=kdd --alphas=0.5', r"config.sweep.methods: unknown 'kdd'; did you mean 'kd'"),
])
def test_wrong_values_are_refused(tmp_path, digits_dir, capsys, settings, message):
  assert run(tmp_path / 'w', digits_dir, *settings.split()) == 2
  assert re.search(message, capsys.readouterr().err)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('rate', [0, -1.0, 'fast', True])
def test_a_learning_rate_of_an_entry_is_checked(rate):
  wrong = config()
  wrong.methods.kd = {**wrong.methods.kd.to_dict(), 'learning_rate': rate}
  with pytest.raises(errors.ConfigError, match='config.methods.kd.learning_rate: '):
    networks.build(wrong, DataSpec('digits', (8, 8, 1), 10))


@pytest.mark.slow
def test_a_sweep_of_variants_leaves_what_runs_of_their_values_leave(tmp_path, digits_dir):
  """Together, one by one, and as `config.student.train` and `config.methods` say it."""
  common = '--methods=ce,kd', '--seeds=1'
  values = '--alphas=0.1,0.5', '--learning_rates=0.1,0.02'
  for name, options in {
      'together': (*values, '--together'), 'one_by_one': values,
      'said': ('--config.student.train.learning_rate=0.02', '--config.methods.kd.alpha=0.5'),
  }.items():
    assert run(tmp_path / name, digits_dir, *common, *options) == 0
  folders = {name: tmp_path / name / PAIR / 'seed1'
             for name in ('together', 'one_by_one', 'said')}
  names = {path.name for path in (folders['together'] / 'student').iterdir()}
  assert names == {'ce', 'ce_lr=2e-2', 'kd', 'kd_lr=2e-2', 'kd_alpha=5e-1',
                   'kd_alpha=5e-1_lr=2e-2'}
  for name in names:
    compare(exported(folders['together'], f'student/{name}'),
            exported(folders['one_by_one'], f'student/{name}'))
  compare(exported(folders['one_by_one'], 'student/kd_alpha=5e-1_lr=2e-2'),
          exported(folders['said'], 'student/kd'))
  result = json.loads(
      (folders['together'] / 'student' / 'kd_alpha=5e-1_lr=2e-2' / 'result.json').read_text())
  assert result['method']['alpha'] == 0.5 and result['method']['learning_rate'] == 0.02


def compare(one, other):
  assert one.keys() == other.keys()
  for name, array in one.items():
    np.testing.assert_allclose(array, other[name], rtol=1e-5, atol=1e-6)
