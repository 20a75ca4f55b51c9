"""How cost grows: figures worked out by hand, a real run in small, the page and its numbers."""
import dataclasses
import json
import re
import shutil
import statistics

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest

from launch.studies.scaling import (
  __main__ as scaling,
  arithmetic,
  curves,
  large,
  pictures,
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
  chip = arithmetic.Chip(
      flops=1, memory=1, bandwidth=1, reduced=100, per_host=4, slices={8: (2, 4)})
  # At half of 100 bytes a second; three times over 2 + 4 hops of a microsecond.
  assert arithmetic.all_reduce(chip, 80, 8, 3) == pytest.approx(2.8 + 18e-6)


def test_input_of_a_host():
  # 4 chips a host, 128 images for each of them every 50 ms; and of 2 chips alone.
  assert arithmetic.input_rate(64, 4, 128, 0.05) == pytest.approx(10_240)
  assert arithmetic.input_rate(2, 4, 128, 0.05) == pytest.approx(5_120)
  assert arithmetic.image_bytes(224) == 150_528


def test_the_model_of_a_step_hides_gradients_behind_the_backward_pass():
  chip = arithmetic.Chip(
      flops=100.0, memory=1, bandwidth=10.0, reduced=200.0, per_host=4, slices={4: (4,)})
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
  made = problem.build(problem.Training(batch_size=8, **large.PAIRS['resnet50 → resnet18']))
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


@pytest.mark.slow
def test_without_heads_the_step_is_that_of_kd():
  training = problem.Training(
      teacher='resnet8', student='resnet8', batch_size=8, image_size=8, taps=())
  assert set(problem.build(training).frozen) == {'teacher'}
  some = dataclasses.replace(training, taps=('stage2', 'stage3'))
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
  before, after = (re.sub(' +', ' ', page.read_text()) for page in (PAGE, copy))
  assert after == before.replace('| CIFAR-100 | 50,000 |', '| CIFAR-100 | 50,001 |') != before


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


# The pictures show the numbers of the study: what is drawn, read back.


def texts(labels) -> list[str]:
  return [label.get_text() for label in labels]


def test_step_times_are_medians_with_a_band_of_quartiles():
  found = scaling.read(RESULTS)
  figure = pictures.step_times(found)
  names = ('batch', 'depth', 'heads', 'classes', 'devices')
  assert [axes.get_xlabel() for axes in figure.axes] == [
      'batch', 'depth of the teacher', 'heads', 'classes', 'CPU devices on the same cores']
  assert figure.axes[0].get_ylabel() == 'ms per step, measured'
  for axes, name in zip(figure.axes, names, strict=True):
    curves_of_panel = [name, 'classes_gap'] if name == 'classes' else [name]
    for line, band, curve in zip(axes.lines, axes.collections, curves_of_panel, strict=True):
      rows = found[curve]['rows']
      assert list(line.get_xdata()) == [row['at'] for row in rows]
      assert list(line.get_ydata()) == pytest.approx(
          [1e3 * statistics.median(row['seconds']) for row in rows])
      low, high = 1e3 * np.quantile([row['seconds'] for row in rows], [0.25, 0.75], axis=1)
      edge = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 6).tolist()}
      assert {(row['at'], round(value, 6)) for limits in (low, high)
              for row, value in zip(rows, limits.tolist(), strict=True)} <= edge
    assert texts(axes.get_xticklabels()) == [f'{row["at"]:,}' for row in found[name]['rows']]
  assert texts(figure.axes[3].get_legend().get_texts()) == ['flatten', 'gap']


def test_the_memory_of_a_chip_is_a_stack_of_bars():
  compiled = scaling.read(RESULTS)['compiled']
  (axes,) = (figure := pictures.memory(compiled)).axes
  rows = tables.in_order(compiled)[::-1]
  kinds = list(rows[0]['memory'])
  assert texts(figure.legends[0].get_texts()) == kinds
  end = np.zeros(len(rows))
  for bars, kind in zip(axes.containers, kinds, strict=True):
    widths = np.array([row['memory'][kind] / 2**30 for row in rows])
    assert [bar.get_width() for bar in bars] == pytest.approx(widths.tolist())
    assert [bar.get_x() for bar in bars] == pytest.approx(end.tolist())
    end += widths
  labels = texts(axes.get_yticklabels())
  assert labels[-1] == 'ViT-S/16 → ViT-Ti/16, TPU v4, 4' and len(labels) == len(rows)
  assert [label.endswith(', remat') for label in labels] == [row['remat'] for row in rows]


def test_the_efficiency_is_drawn_for_each_pair_and_scaling():
  rows = tables.scaled(scaling.read(RESULTS)['compiled'])
  figure = pictures.efficiency(rows)
  assert [axes.get_title() for axes in figure.axes] == [f'{pair}, TPU v4' for pair in (
      'ViT-S/16 → ViT-Ti/16', 'resnet50 → resnet18')]
  assert texts(figure.legends[0].get_texts()) == [
      '128 images per chip, overlapped', '128 images per chip, apart', '4,096 images, overlapped',
      '4,096 images, apart']
  for axes in figure.axes:
    *lines, hundred = axes.lines
    assert list(hundred.get_ydata()) == [100, 100] and axes.get_ylim()[0] == 0
    for line, (kind, timing) in zip(lines, (
        ('weak', 'overlapped'), ('weak', 'apart'), ('strong', 'overlapped'), ('strong', 'apart')),
                                    strict=True):
      points = [(row['chips'], 100 * row[timing]) for row in rows if row['kind'] == kind and (
          f'{row["pair"]}, {row["chip"]}' == axes.get_title())]
      assert [tuple(point) for point in line.get_xydata().tolist()] == points and points
      assert line.get_linestyle() == {'overlapped': '-', 'apart': ':'}[timing]
  colours = {matplotlib.colors.to_hex(line.get_color()) for line in figure.axes[0].lines[:4]}
  assert len(colours) == 2
