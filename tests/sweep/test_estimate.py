"""What a sweep would cost, by `--dry_run`: numbers worked out by hand, and nothing written."""
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from kdih.config import checks, flags
from kdih.data.spec import DataSpec
from kdih.models import cost, registry, taps
from kdih.phases import networks
from kdih.sweep import __main__ as sweep, estimate, plan
from tests.helpers.runs import ROOT, read_config, tiny_command
from tests.helpers.sweeps import NETS
from tests.helpers.tiny_nets import TinyNet

SIZES = {'train': 160, 'validation': 40, 'test': 50}
PASSES = 6 * 4  # Steps of a phase of the tiny config, on four devices.
# FLOPs of eight means over four positions, and of what makes of their 8 numbers 10.
CLASSIFIER = 8 * (4 * 8 + 2 * 8 * 10 + 10)
TOGETHER = ('sweep.seeds=(1,2,3)', 'data.order_seed=0')
UNFOLDED = 'compute.fold_batch_norm=False'


def dry_run(workdir, data_dir, *overrides) -> int:
  return sweep.main(tiny_command(workdir, data_dir, '--dry_run', *overrides))


def costs(text: str) -> list[tuple[str, ...]]:
  """Name, parameters, FLOPs, and number of runs of every phase."""
  return re.findall(r'^  (\S.*?) +([\d,]+) parameters +(\S+) FLOPs .* x (\d+)$', text, re.MULTILINE)


@pytest.mark.slow
def test_a_dry_run_tells_the_costs_and_writes_nothing(tmp_path, digits_dir, capsys):
  workdir = tmp_path / 'w'
  assert dry_run(workdir, digits_dir, '--methods=ce,dml', '--seeds=1,2') == 0
  text = capsys.readouterr().out
  # Two convolutions with bias and norm, 4 and 8 wide: 36 + 4 + 8, 288 + 8 + 16; then 80 + 10.
  assert re.search(rf'teacher +{NETS}:TinyNet: 450 parameters', text)
  ce, dml = costs(text)
  # Half as wide: 18 + 2 + 4, 72 + 4 + 8; then 40 + 10.
  assert ce[:2] == ('student ce', '158') and dml[:2] == ('student dml', '316')  # With a peer.
  assert float(dml[2]) / float(ce[2]) == pytest.approx(2, rel=0.3)
  assert ce[3] == dml[3] == '2'
  # The same is said of what has not been prepared, at once and without a network.
  assert dry_run(workdir, tmp_path / 'none', '--methods=ce,dml', '--seeds=1,2') == 0
  assert costs(capsys.readouterr().out) == [ce, dml]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_teacher_of_several_pairs_is_counted_once(tmp_path, digits_dir, capsys):
  assert dry_run(tmp_path / 'w', digits_dir, '--methods=ce,dih', '--seeds=1',
                 f'--students={NETS}:TinyNet,{NETS}:NoTaps') == 0
  assert [name for name, *_ in costs(capsys.readouterr().out)] == [
      'teacher', 'heads', 'student ce', 'student dih', 'student ce', 'student dih']


def test_what_is_not_known_before_a_data_set_is_prepared_is_not_guessed(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce',
                 '--config.data.name=fashion_mnist') == 0
  text = capsys.readouterr().out
  assert 'images (28, 28, 1), 10 classes' in text and ': 158 parameters' in text
  assert 'how long it takes is not known before fashion_mnist is prepared' in text
  assert costs(text) == [] and list(tmp_path.iterdir()) == []


def test_a_wrong_split_is_refused_although_nothing_is_prepared(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce',
                 '--config.data.train_split=trian') == 2
  error = capsys.readouterr().err
  assert error.startswith("kdih: config.data.train_split: unknown 'trian'; did you mean 'train'?")
  assert error.count('\n') == 1


def planned(*overrides):
  """{name: phase} of each pair of a sweep of the tiny config."""
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  pairs = plan.pairs(config)
  built = [networks.build(pair.config, DataSpec('digits', (8, 8, 1), 10)) for pair in pairs]
  return [{phase.name: phase for phase in phases}
          for phases in estimate.plan(pairs, built, plan.runs(config, pairs), SIZES)]


def forward() -> int:
  """FLOPs of the teacher's forward pass of the eight images that a device has of a batch."""
  model, images = TinyNet(10), jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32)
  return cost.flops(jax.jit(functools.partial(model.apply, train=False)),
                    taps.abstract_variables(model, (8, 8, 1)), images)


@pytest.mark.slow
def test_students_of_a_cache_are_counted_without_the_teacher_and_its_making_once():
  alone, = planned('sweep.methods=kd,at', UNFOLDED)
  cached, = planned('sweep.methods=kd,dkd,dih,at', UNFOLDED, 'compute.cache=all_views')
  assert alone['student kd'].flops - cached['student kd'].flops == PASSES * forward()
  assert alone['student at'] == cached['student at']
  assert [name for name in cached if name.startswith('cache')] == ['cache kd, dih']
  tables = cached['cache kd, dih']
  assert (tables.parameters, tables.runs) == (0, 1)
  assert [note.partition(' numbers')[0] for note in tables.notes] == [
      '160 images x 9 views x 10', '160 images x 9 views x 11']
  # The teacher once; the two heads, on 64 and 32 numbers, and what makes a soft label of them.
  more = tables.flops / (9 * 160) - forward() / 8 - 2 * 10 * (64 + 32)
  assert 0 < more < 40 * 10
  alone, = planned('sweep.methods=kd,at', UNFOLDED, 'compute.cache=all_views')
  assert alone['cache kd'].flops == 9 * 160 / 8 * forward()


@pytest.mark.slow
def test_a_table_takes_memory_where_it_lies():
  device, host = (planned('sweep.methods=kd', 'compute.cache=all_views',
                          f'compute.cache_place={place}')[0] for place in ('device', 'host'))
  # A quarter of the images on each of the four devices, in float16; and the numbers of all.
  taken = 40 * 9 * 10 * 2 + 160 * 4
  for name in ('cache kd', 'student kd'):
    assert device[name].memory - host[name].memory == taken
    assert device[name].flops == host[name].flops
  assert device['teacher'] == host['teacher'] and 'GB on the host' in host['cache kd'].notes[0]


@pytest.mark.slow
def test_heads_of_cached_taps_are_counted_without_the_teacher():
  options = ('sweep.methods=dih', UNFOLDED, 'compute.cache=views:4')
  alone, = planned(*options)
  cached, = planned(*options, 'compute.cache_taps=True')
  read = forward() - CLASSIFIER
  assert alone['heads'].flops - cached['heads'].flops == PASSES * read
  assert cached['cache taps'].flops == 4 * 160 / 8 * read
  assert '4 views x 96 numbers' in cached['cache taps'].notes[0]
  assert alone['student dih'] == cached['student dih']


@pytest.mark.slow
def test_the_tables_of_each_teacher_are_made_once():
  pairs = ','.join(f"'{NETS}:{teacher}:{NETS}:{student}'" for teacher, student in (
      ('TinyNet', 'TinyNet'), ('Diverging', 'NoTaps'), ('TinyNet', 'NoTaps')))
  first, second, third = planned(
      'sweep.methods=kd,dkd', f'sweep.pairs=({pairs})', 'compute.cache=all_views')
  assert first['cache kd'].runs == second['cache kd'].runs == 1
  assert not any(name.startswith('cache') for name in third)


@pytest.mark.parametrize('method, unread', [
    ('kd', {'student kd': 0}),
    ('fitnets', {'  fitnets: prepare': CLASSIFIER, 'student fitnets': 0})])
@pytest.mark.slow
def test_seeds_together_ask_the_teacher_once(method, unread):
  options = (f'sweep.methods=ce,{method}', *TOGETHER, UNFOLDED)
  alone, = planned(*options)
  together, = planned(*options, 'sweep.together=True')
  for name, flops in unread.items():
    one, all_ = alone[name], together[f'{name}, 3 together']
    assert 3 * one.flops - all_.flops == 2 * PASSES * (forward() - flops)
    assert (one.runs, all_.runs, all_.parameters) == (3, 1, 3 * one.parameters)
    assert one.memory < all_.memory < 3 * one.memory
  assert together['student ce, 3 together'].flops == 3 * alone['student ce'].flops


@pytest.mark.slow
def test_variants_together_ask_the_teacher_once():
  one, = planned('sweep.methods=kd', 'sweep.seeds=(1,)', UNFOLDED)
  all_, = planned('sweep.methods=kd', 'sweep.seeds=(1,)', UNFOLDED, 'sweep.alphas=(0.1,0.5)',
                  'sweep.learning_rates=(0.1,0.2)', 'sweep.together=True')
  assert list(all_) == ['teacher', 'student kd, 4 together']
  assert 4 * one['student kd'].flops - all_['student kd, 4 together'].flops == (
      3 * PASSES * forward())


@pytest.mark.slow
def test_chains_are_not_trained_together():
  alone, = planned('sweep.methods=takd', *TOGETHER)
  together, = planned('sweep.methods=takd', *TOGETHER, 'sweep.together=True')
  assert alone == together and together['student takd'].runs == 3


def test_the_teacher_is_counted_as_it_is_folded():
  (folded,), (alone,) = planned('sweep.methods=kd'), planned('sweep.methods=kd', UNFOLDED)
  # A number of a map is shifted, and not moved, multiplied and shifted; 4 x 4 x 4 + 2 x 2 x 8.
  assert (alone['student kd'].flops - folded['student kd'].flops) / (6 * 32) == pytest.approx(
      2 * 96, rel=0.05)
  assert alone['teacher'] == folded['teacher']


@pytest.mark.parametrize('overrides, expected', [
    (('--methods=kd', '--config.compute.cache_taps=True'), 'config.compute.cache_taps: is set, '),
    (('--methods=at', '--config.compute.cache=all_views'),
     'config.compute.cache: the method at needs more of the teacher than logits'),
    (('--methods=kd', '--config.compute.cache=views:10'), "config.compute.cache: 'views:10' asks "),
    (('--methods=kd', '--config.compute.cache_taps=True', '--config.data.name=fashion_mnist'),
     'config.compute.cache_taps: is set, '),
    # 40,000 images x 2049^2 views x 100 numbers of two bytes.
    (('--methods=kd', '--config.compute.cache=all_views', '--config.data.padding=1024',
      '--config.data.name=cifar100', '--config.data.train_split=train'), ' takes 33587.21 GB, '),
    # Features of 16 x 16 x 4 and 8 x 8 x 8 numbers.
    (('--methods=dih', '--config.compute.cache=views:100000', '--config.data.padding=1024',
      '--config.data.name=cifar100', '--config.data.train_split=train',
      '--config.compute.cache_taps=True'), ' takes 12288.00 GB, ')])
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
