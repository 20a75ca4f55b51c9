"""What a sweep will take, by `--dry_run`: what pairs, methods and seeds multiply."""
import re

import pytest

from kdih.config import checks, flags
from kdih.models import registry
from kdih.sweep import __main__ as sweep, plan
from tests.helpers.dry_runs import by_phase, clock, measured, rows  # noqa: F401
from tests.helpers.runs import ROOT, tiny_command
from tests.helpers.sweeps import NETS, PAIR
from tests.phases.test_step_cost import CONV1, FORWARD

TOGETHER = ('--seeds=1,2,3', '--config.data.order_seed=0')


def dry_run(workdir, data_dir, *overrides) -> int:
  return sweep.main(tiny_command(workdir, data_dir, '--dry_run', *overrides))


def told(tmp_path, capsys, *overrides) -> str:
  """What a dry run prints, without data; it writes nothing."""
  assert dry_run(tmp_path / 'w', tmp_path / 'none', *overrides) == 0
  assert list(tmp_path.iterdir()) == []
  return capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(tmp_path, capsys):
  out = told(tmp_path, capsys, '--methods=ce,dml', '--seeds=1,2', '--dry_run_seconds=600')
  ce, dml = rows(out)
  assert (ce.phase, ce.parameters, ce.runs) == ('student/ce', '158', 'x 2')
  assert (dml.phase, dml.parameters, dml.runs) == ('student/dml', '316', 'x 2')  # With a peer.
  assert '~' not in out.partition('The column "in all"')[0]


def test_a_teacher_of_several_pairs_is_counted_once(tmp_path, capsys):
  out = told(tmp_path, capsys, '--methods=ce,dih', '--seeds=1', '--dry_run_seconds=0',
             f'--students={NETS}:TinyNet,{NETS}:NoTaps')
  assert [row.phase for row in rows(out)] == [
      'teacher', 'heads', 'student/ce', 'student/dih', 'student/ce', 'student/dih']
  assert re.findall(r'^(\S+) -> (\S+):$', out, re.MULTILINE) == [
      (f'{NETS}:TinyNet', f'{NETS}:{student}') for student in ('TinyNet', 'NoTaps')]


@pytest.mark.slow
@pytest.mark.usefixtures('clock')
def test_the_most_telling_steps_of_each_pair_come_first(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce,kd,dih', '--seeds=1,2',
                 f'--students={NETS}:TinyNet,{NETS}:NoTaps', '--dry_run_seconds=270') == 0
  out, err = capsys.readouterr()
  teacher = f'{NETS}:TinyNet'
  assert measured(err)[:4] == [
      f'{teacher}, teacher', f'{teacher}, heads', f'{teacher} -> {NETS}:TinyNet, student/dih',
      f'{teacher} -> {NETS}:NoTaps, student/dih']
  assert len(measured(err)) < 8 and sum('~' in row.step for row in rows(out)) == (
      8 - len(measured(err)))
  # Phases, and all of their runs: half a second for each of the steps that were measured.
  total = re.search(r'^in all: ~([\d.]+) s$', out, re.MULTILINE)
  assert total and float(total[1]) > 6 * 0.5 * (1 + 1 + 2 + 2)


@pytest.mark.slow
@pytest.mark.usefixtures('clock')
def test_seeds_together_ask_the_teacher_once(tmp_path, capsys):
  options = ('--methods=kd', *TOGETHER, '--config.compute.fold_batch_norm=False')
  alone = by_phase(told(tmp_path, capsys, *options))
  together = by_phase(told(tmp_path, capsys, *options, '--together'))
  one, several = alone['student/kd'], together['student/kd, 3 together']
  assert (one.runs, several.runs) == ('x 3', 'x 1')
  assert (one.parameters, several.parameters) == ('158', '474')
  # The teacher's step is measured; a student's is half as wide, its images need no gradient.
  first = 2 * 9 * 2 * 16
  learnt = 3 * (first + 2 * 9 * 2 * 4 * 4 + 2 * 4 * 10) - first
  for row, students in ((one, 1), (several, 3)):
    milliseconds = 500 * (FORWARD + students * learnt) / (3 * FORWARD - CONV1)
    assert row.step == f'~{milliseconds:.1f} ms'


def test_variants_together_are_one_program(tmp_path, capsys):
  out = told(tmp_path, capsys, '--methods=kd', '--seeds=1', '--alphas=0.1,0.5', '--together',
             '--learning_rates=0.1,0.2', '--dry_run_seconds=0')
  assert list(by_phase(out)) == ['teacher', 'student/kd, 4 together']


@pytest.mark.slow
def test_chains_are_not_trained_together(tmp_path, capsys):
  alone, together = (
      rows(told(tmp_path, capsys, '--methods=takd', *TOGETHER, '--dry_run_seconds=0', *more))
      for more in ((), ('--together',)))
  assert alone == together and alone[-1].runs == 'x 3'


def test_the_cache_of_each_teacher_is_made_once(tmp_path, capsys):
  pairs = ','.join(f'{NETS}:{teacher}:{NETS}:{student}' for teacher, student in (
      ('TinyNet', 'TinyNet'), ('Diverging', 'NoTaps'), ('TinyNet', 'NoTaps')))
  out = told(tmp_path, capsys, '--methods=kd,dkd', f'--pairs={pairs}', '--dry_run_seconds=0',
             '--config.compute.cache=all_views')
  assert [row.phase for row in rows(out)].count('cache for student/kd') == 2
  assert all(row.runs == 'x 1' for row in rows(out) if row.phase.startswith('cache'))


@pytest.mark.slow
def test_what_is_finished_is_left_out(tmp_path, digits_dir, capsys):
  command = ('--methods=ce', '--seeds=1')
  assert sweep.main(tiny_command(tmp_path / 'w', digits_dir, *command)) == 0
  capsys.readouterr()
  assert dry_run(tmp_path / 'w', digits_dir, *command) == 0
  assert 'Every phase is finished' in capsys.readouterr().out
  assert (tmp_path / 'w' / PAIR / 'seed1/student/ce/result.json').exists()


def test_a_wrong_split_is_refused_although_nothing_is_prepared(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce',
                 '--config.data.train_split=trian') == 2
  error = capsys.readouterr().err
  assert error.startswith("kdih: config.data.train_split: unknown 'trian'; did you mean 'train'?")
  assert error.count('\n') == 1


@pytest.mark.parametrize('overrides, expected', [
    (('--methods=kd', '--config.compute.cache_taps=True'), 'config.compute.cache_taps: is True, '),
    (('--methods=at', '--config.compute.cache=all_views'),
     'config.compute.cache: at cannot use a cache, because only logits can be cached'),
    (('--methods=kd', '--config.compute.cache=views:10'),
     "config.compute.cache: 'views:10' requires more views"),
    (('--methods=kd', '--config.compute.cache_taps=True', '--config.data.name=fashion_mnist'),
     'config.compute.cache_taps: is True, '),
    # 40,000 images x 2049^2 views x 100 numbers of two bytes.
    (('--methods=kd', '--config.compute.cache=all_views', '--config.data.padding=1024',
      '--config.data.name=cifar100', '--config.data.train_split=train'), ' take 33587.21 GB, '),
    # Features of 16 x 16 x 4 and 8 x 8 x 8 numbers.
    (('--methods=dih', '--config.compute.cache=views:100000', '--config.data.padding=1024',
      '--config.data.name=cifar100', '--config.data.train_split=train',
      '--config.compute.cache_taps=True'), ' take 12288.00 GB, ')])
def test_a_cache_that_cannot_be_is_refused_by_a_dry_run_too(tmp_path, capsys, overrides, expected):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', *overrides) == 2
  error = capsys.readouterr().err
  assert error.startswith('kdih: config.compute.cache') and expected in error
  assert error.count('\n') == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('table, num_pairs', [
    ('cifar10', 9), ('cifar100', 9), ('tiny_imagenet', 6), ('cifar100,runlocal', 1)])
def test_the_papers_comparison_is_a_sweep_of_what_there_is(table, num_pairs):
  config, _ = flags.read(
      ['kdih', f'--config={ROOT}/configs/paper.py:table={table}', '--workdir=unused'])
  checks.check(config)
  pairs = plan.pairs(config)
  assert len(pairs) == num_pairs
  assert {name for pair in pairs for name in (pair.teacher, pair.student)} <= set(registry.names())
  assert set(pairs[0].methods) <= set(config.methods) and 'dih' in pairs[0].methods
