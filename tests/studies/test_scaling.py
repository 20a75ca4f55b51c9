"""How cost grows: figures worked out by hand, a real run in small, the page and its numbers."""
import json
import shutil
import statistics

import jax.numpy as jnp
import pytest

from launch.studies.scaling import (
  __main__ as scaling,
  arithmetic,
  curves,
  large,
  problem,
  tables,
)
from tests.helpers.made_results import read_png
from tests.helpers.runs import ROOT

PAGE = ROOT / 'launch' / 'studies' / 'scaling.md'
RESULTS = ROOT / 'launch' / 'results' / 'scaling'


def run(out, *flags: str) -> int:
  return scaling.main(['scaling', f'--out={out}', '--smallest', '--repeats=2', *flags])


def test_the_cache_of_cifar100_is_what_its_views_take():
  assert arithmetic.views(4, flip=True) == 162 and arithmetic.views(0, flip=False) == 1
  assert arithmetic.cache_bytes(50_000, 162, 100) == 1_620_000_000
  cifar, *_, imagenet = arithmetic.caches()  # The first and the last.
  assert cifar['all'] == 1_620_000_000
  assert imagenet['all'] is None and imagenet['one'] == 14_197_122 * 21_841 * 2


def test_a_ring_sends_every_byte_almost_twice():
  # Of 8 chips each sends 7 of 8 parts, and then 7 of 8 again.
  assert arithmetic.ring_bytes(80, 8) == 140
  chip = arithmetic.Chip(1, 1, 1, 100, 4, {8: (2, 4)})
  # At half of 100 bytes a second; three times over 2 + 4 hops of a microsecond.
  assert arithmetic.all_reduce(chip, 80, 8, 3) == pytest.approx(2.8 + 18e-6)


def test_input_of_a_host():
  # 4 chips a host, 128 images for each of them every 50 ms; and of 2 chips alone.
  assert arithmetic.input_rate(64, 4, 128, 0.05) == pytest.approx(10_240)
  assert arithmetic.input_rate(2, 4, 128, 0.05) == pytest.approx(5_120)
  assert arithmetic.image_bytes(224) == 150_528


def test_the_model_of_a_step_hides_gradients_behind_the_backward_pass():
  chip = arithmetic.Chip(100.0, 1, 10.0, 200.0, 4, {4: (4,)})
  step = arithmetic.step(chip, 4, flops=100, bytes_moved=50, gradient_bytes=400,
                         all_reduce_bytes=400, all_reduces=1)
  # 5 s for the bytes, at half speed 10; 600 bytes sent at 100 a second; 5 s of 6 are hidden.
  assert step.compute == pytest.approx(10)
  assert step.apart == pytest.approx(16) and step.overlapped == pytest.approx(11)


def test_all_reduces_are_read_from_a_compiled_program():
  program_text = """
  %psum.1 = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%x), channel_id=1, to_apply=%region_2.3
  %all.2 = (f32[3]{0:T(4)}, /*index=1*/bf16[2,5]{1,0}, f32[]) all-reduce(%a, %b, %c), channel_id=2
  %add.3 = f32[9]{0} add(%p, %q)"""
  assert large.all_reduced(program_text) == [2 * 64 * 4, 3 * 4 + 10 * 2 + 4]


@pytest.mark.slow
def test_gradients_of_resnet18_are_its_parameters_in_float32():
  made = problem.build(problem.Setup(batch_size=8, **large.PAIRS['resnet50 → resnet18']))
  # torchvision's count of resnet18; momentum is as large, and optax counts steps beside it.
  assert large.bytes_of(made.state.params) == 4 * 11_689_512
  assert large.held(made)['optimizer'] == 4 * 11_689_512 + 4
  assert made.state.params['student']['classifier']['kernel'].dtype == jnp.float32


@pytest.mark.slow
def test_heads_on_large_images_have_more_parameters_than_their_teacher():
  rows = {(row['teacher'], row['kind']): row for row in arithmetic.head_sizes()}
  flat = rows['resnet50, 224 pixels', 'flatten']
  # 56 x 56 x 256, 28 x 28 x 512, 14 x 14 x 1024, 7 x 7 x 2048, each to 1,000 classes, with bias.
  assert flat['parameters'] == (802_816 + 401_408 + 200_704 + 100_352) * 1000 + 4000
  assert flat['trained_bytes'] == 3 * 4 * flat['parameters']
  gap = rows['resnet50, 224 pixels', 'gap']
  assert gap['parameters'] == (256 + 512 + 1024 + 2048) * 1000 + 4000


def test_ratios_are_taken_within_a_turn():
  rows = [{'at': 1, 'seconds': [1.0, 3.0, 2.0], 'head_parameters': 0},
          {'at': 2, 'seconds': [2.0, 9.0, 8.0], 'head_parameters': 7}]
  one, two = curves.summary(rows, 1)
  assert one['ratio'] == 1 and two['ratio'] == 3  # Of 2, 3 and 4; 4 is the ratio of medians.
  assert two['ms'] == 1e3 * statistics.median([2.0, 9.0, 8.0]) and two['head_parameters'] == 7


def test_without_heads_the_step_is_that_of_kd():
  setup = problem.Setup('resnet8', 'resnet8', 8, image_size=8, taps=())
  assert set(problem.build(setup).frozen) == {'teacher'}
  some = problem.Setup('resnet8', 'resnet8', 8, image_size=8, taps=('stage2', 'stage3'))
  assert set(problem.build(some).frozen['heads']['params']) == {'stage2', 'stage3'}


@pytest.mark.slow
def test_a_small_run_measures_adds_to_the_file_and_fills_the_page(tmp_path, capsys):
  out, page = tmp_path / 'results' / 'scaling', tmp_path / 'studies' / 'scaling.md'
  page.parent.mkdir()
  shutil.copy(PAGE, page)
  assert run(out, '--only=devices,caches') == 0
  assert run(out, '--only=batch,heads') == 0
  found = scaling.read(out)
  assert set(found) == {'devices', 'caches', 'batch', 'heads'}
  assert [row['at'] for row in found['devices']['rows']] == [1, 2]
  assert all(len(row['seconds']) == 2 and min(row['seconds']) > 0
             for name in ('devices', 'batch', 'heads') for row in found[name]['rows'])
  assert [row['head_parameters'] for row in found['heads']['rows']] == [0, (2 * 2 * 64 + 1) * 10]
  printed, text = capsys.readouterr().out, page.read_text()
  for table in tables.all_tables(found).values():
    assert table in printed and table in text
  height, width, _ = read_png(out / 'curves.png').shape
  assert width > height and (out / 'curves.svg').exists()


def test_the_page_has_the_tables_of_its_numbers(tmp_path):
  found = scaling.read(RESULTS)
  assert {'caches', 'head_sizes', 'compiled'} <= set(found) <= set(scaling.PARTS)
  copy = tmp_path / 'scaling.md'
  shutil.copy(PAGE, copy)
  tables.fill_in(copy, found)
  assert copy.read_text() == PAGE.read_text()
  found['caches'][0]['images'] += 1
  tables.fill_in(copy, found)
  assert copy.read_text() == PAGE.read_text().replace('| CIFAR-100 | 50,000 |',
                                                      '| CIFAR-100 | 50,001 |')


def test_what_was_compiled_serves_every_number_of_chips():
  compiled = scaling.read(RESULTS)['compiled']
  rows = tables.scaled(compiled)
  for one in compiled:
    if one['batch'] == tables.WEAK:
      assert [row['chips'] for row in rows if row['kind'] == 'weak' and (
          row['pair'], row['chip']) == (one['pair'], one['chip'])] == list(
              arithmetic.CHIPS[one['chip']].slices)
  for row in rows:  # More images than those of one chip alone, to which it is compared, do better.
    assert 0 < row['apart'] <= row['overlapped'] < (1.1 if row['batch'] <= tables.WEAK else 2)


@pytest.mark.parametrize('flags, reason', [
    (['--only=bacth'], "--only: unknown 'bacth'; did you mean 'batch'?"),
    (['--repeats=1'], '--repeats: '), (['--fast'], "'--fast' is not a flag"),
    (['--out='], '--out: is not set')])
def test_a_wrong_flag_is_one_line_and_writes_nothing(tmp_path, capsys, flags, reason):
  assert scaling.main(['scaling', f'--out={tmp_path / "out"}', *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'kdih: {reason}') and error.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('content', ['[1]', '{"batch"'])
def test_a_file_of_something_else_is_not_overwritten(tmp_path, capsys, content):
  (tmp_path / scaling.NAME).write_text(content)
  assert run(tmp_path, '--only=caches') == 2
  assert (tmp_path / scaling.NAME).read_text() == content


def test_a_page_without_the_places_is_left_alone(tmp_path):
  page = tmp_path / 'scaling.md'
  page.write_text('# My own\n')
  with pytest.raises(ValueError, match='has no place for the table'):
    tables.fill_in(page, {'caches': arithmetic.caches()})
  assert page.read_text() == '# My own\n'


def test_the_file_is_plain_json(tmp_path):
  scaling.put(tmp_path, 'caches', arithmetic.caches())
  scaling.put(tmp_path, 'other', 1)
  assert set(json.loads((tmp_path / scaling.NAME).read_text())) == {'caches', 'other'}
