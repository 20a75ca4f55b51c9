"""The pictures of a run: drawn for any number of classifiers, replaced whole."""
import numpy as np
import pytest

from kdih.report import run_plots
from tests.helpers.made_results import heads, read_png, result

EIGHT = ('at', 'ce', 'crd', 'dih', 'fitnets', 'hint_long', 'kd', 'rkd')


@pytest.mark.parametrize('members', [('stage1',), tuple(f'ResNetBlock_{i}' for i in range(11))])
@pytest.mark.parametrize('students', [('dih',), EIGHT])
def test_accuracy_by_depth_fits_any_number(tmp_path, members, students):
  path = tmp_path / 'x.png'
  run_plots.accuracy_by_depth(
      {'teacher': result(0.8), 'heads': heads(*members),
       'student': {name: result(0.6) for name in students}}, path)
  height, width, _ = read_png(path).shape
  assert height == 630
  assert width == pytest.approx(150 * (2.5 + 0.62 * len(('teacher', *members, *students))), abs=1)


def test_accuracy_by_depth_shows_the_numbers(tmp_path):
  pictures = []
  for top1 in (0.6, 0.7):
    path = tmp_path / f'{top1}.png'
    run_plots.accuracy_by_depth({'teacher': result(0.8), 'student': {'ce': result(top1)}}, path)
    pictures.append(read_png(path))
  assert np.array_equal(pictures[0][0, 0], [1, 1, 1, 1])  # A white background.
  assert not np.array_equal(*pictures)


@pytest.mark.parametrize('steps', [1, 50])
def test_training_curves_of_any_length(tmp_path, steps):
  lines = [{'step': i + 1, 'train/loss': 2.3, 'train/top1': 0.1} for i in range(steps)]
  path = tmp_path / 'x.png'
  students = {f'student/{name}': lines for name in EIGHT}
  run_plots.training_curves({'teacher': lines, **students}, path)
  assert read_png(path).shape == (630, 1650, 4)


def test_training_curves_of_losses_that_reach_zero(tmp_path):
  lines = [{'step': i, 'train/loss': 1.0 - i, 'train/top1': 0.1} for i in range(4)]
  run_plots.training_curves({'teacher': lines}, tmp_path / 'x.png')
  assert read_png(tmp_path / 'x.png').shape == (630, 1650, 4)


def test_terms_of_a_loss_get_a_panel_each_phase(tmp_path):
  def lines(**terms):
    return [{'step': step, 'train/loss': 2.0, 'train/top1': 0.1,
             **{f'train/{name}': value / step for name, value in terms.items()}}
            for step in range(1, 5)]

  pictures = {}
  for count in (0, 3, 4):  # Three to a row.
    students = {f'student/{number}': lines(ce=1.0, kl=2.0) for number in range(count)}
    run_plots.training_curves({'teacher': lines(ce=1.0), **students}, tmp_path / 'x.png')
    pictures[count] = read_png(tmp_path / 'x.png')
  heights = [picture.shape[0] for picture in pictures.values()]
  assert heights == pytest.approx([630, 630 + 360, 630 + 720], abs=1)
  run_plots.training_curves(
      {'teacher': lines(ce=1.0), **{f'student/{i}': lines(ce=1.0, kl=3.0) for i in range(3)}},
      tmp_path / 'x.png')
  other = read_png(tmp_path / 'x.png')
  changed = (other != pictures[3]).any(axis=(1, 2))
  assert changed[630:].any() and not changed[:600].any()  # The panels alone.


def test_the_legend_of_many_phases_leaves_the_panels_free(tmp_path):
  lines = [{'step': step, 'train/loss': 2.0, 'train/top1': 0.1} for step in (1, 2)]
  two_terms = [{**line, 'train/ce': 1.0, 'train/kl': 1.0} for line in lines]

  def drawn(last):
    many = dict.fromkeys([f'student/{number:02}' for number in range(20)], lines)
    run_plots.training_curves(
        {'student/dih': two_terms, **many, last: lines}, tmp_path / 'x.png')
    return read_png(tmp_path / 'x.png')

  one, other = drawn('student/20'), drawn('student/xx')
  changed = np.flatnonzero((one != other).any(axis=(1, 2)))
  assert one.shape[0] == pytest.approx(630 + 360, abs=1)
  assert len(changed) and changed.max() < 600  # Its name in the legend, beside the curves.


def test_a_picture_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'x.png'
  path.write_bytes(b'an older picture')
  run_plots.training_curves({'teacher': [{'step': 1, 'train/loss': 1.0, 'train/top1': 0.1}]}, path)
  assert read_png(path).shape == (630, 1650, 4)
  assert [file.name for file in tmp_path.iterdir()] == ['x.png']
