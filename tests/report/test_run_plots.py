"""The pictures of a run: the numbers that are drawn, read back, for any number of classifiers."""
import itertools

import matplotlib.text
import pytest

from kdih.report import run_plots, style
from tests.helpers.made_results import heads, measured, read_png, result

EIGHT = ('at', 'ce', 'crd', 'dih', 'fitnets', 'hint_long', 'kd', 'rkd')


def texts(labels) -> list[str]:
  return [label.get_text() for label in labels]


def points(line) -> list[tuple[float, float]]:
  return [tuple(point) for point in line.get_xydata().tolist()]


def size(figure) -> tuple[float, float]:
  """Width and height in inches."""
  return tuple(figure.get_size_inches())


# Accuracy by depth.


def some_results() -> dict:
  """A teacher of 80 %, heads of 50 and 65.25 %, their mean of 70 %, students of 66 and 68.75 %."""
  cohort = heads('stage1', 'stage2')
  cohort['members']['stage2'] = measured(0.6525)
  return {'teacher': result(0.8), 'heads': cohort,
          'student': {'ce': result(0.66), 'dih': result(0.6875)}}


def test_accuracy_by_depth_draws_heads_teacher_mean_and_students():
  figure = run_plots.accuracy_by_depth(some_results())
  (axes,) = figure.axes
  depth, ce, dih, mean, divider = axes.lines
  assert points(depth) == [(0, 50), (1, 65.25), (2, 80)]
  assert (points(ce), points(dih)) == ([(3, 66)], [(4, 68.75)])
  assert ce.get_marker() != dih.get_marker() and ce.get_color() != depth.get_color()
  assert list(mean.get_ydata()) == [70, 70] and mean.get_linestyle() == '--'
  assert list(divider.get_xdata()) == [2.5, 2.5]
  assert texts(axes.get_xticklabels()) == ['stage1', 'stage2', 'final', 'ce', 'dih']
  labels = {text.xy: text.get_text() for text in axes.texts if hasattr(text, 'xy')}
  assert labels == {(0, 50): '50.0', (1, 65.25): '65.2', (2, 80): '80.0', (3, 66): '66.0',
                    (4, 68.75): '68.8'}
  assert [text.get_text() for text in axes.texts if not hasattr(text, 'xy')] == [
      'cohort, by depth', 'students']
  assert texts(figure.legends[0].get_texts()) == ['cohort mean 70.0']
  low, high = axes.get_ylim()
  assert low < 50 and high > 80


@pytest.mark.parametrize('tap', ['$x', r'$\foo$', '$$', '^_{'])
def test_names_of_taps_are_no_formulas(tap, tmp_path):
  figure = run_plots.accuracy_by_depth({'heads': heads(tap, 'stage2')})
  style.save(figure, tmp_path / 'x.png')
  assert texts(figure.axes[0].get_xticklabels())[0] == tap.replace('$', r'\$')


def test_accuracy_by_depth_takes_the_teacher_from_the_cohort_if_it_was_loaded():
  (axes,) = run_plots.accuracy_by_depth({'heads': heads('stage1')}).axes
  assert points(axes.lines[0]) == [(0, 50), (1, 80)]
  assert texts(axes.get_xticklabels()) == ['stage1', 'final']


def test_accuracy_by_depth_of_students_alone():
  figure = run_plots.accuracy_by_depth({'student': {'ce': result(0.6), 'kd': result(0.7)}})
  (axes,) = figure.axes
  assert [points(line) for line in axes.lines if len(line.get_xdata())] == [[(0, 60)], [(1, 70)]]
  assert not figure.legends


@pytest.mark.parametrize('members', [('stage1',), tuple(f'ResNetBlock_{i}' for i in range(11))])
@pytest.mark.parametrize('students', [('dih',), EIGHT])
def test_accuracy_by_depth_fits_any_number(members, students):
  figure = run_plots.accuracy_by_depth(
      {'teacher': result(0.8), 'heads': heads(*members),
       'student': {name: result(0.6) for name in students}})
  names = [*members, 'final', *students]
  assert texts(figure.axes[0].get_xticklabels()) == names
  assert size(figure) == pytest.approx((2.5 + 0.62 * len(names), 4.2))


# Training curves.


def lines(scale: float, steps: int = 4, **terms: float) -> list[dict]:
  """Logged lines whose loss and terms fall as 1 / step, and two validations."""
  train = [{'step': step, 'train/loss': scale / step, 'train/top1': 0.1 * step,
            **{f'train/{name}': value / step for name, value in terms.items()}}
           for step in range(1, steps + 1)]
  return [*train, {'step': 2, 'val/top1': 0.25 * scale, 'val/loss': 1.0},
          {'step': 4, 'val/top1': 0.3 * scale, 'val/loss': 1.0}]


def curves_drawn(axes) -> dict[str, list[tuple[float, float]]]:
  return {line.get_label(): points(line) for line in axes.lines}


def test_training_curves_draw_loss_and_validation_accuracy_by_step():
  figure = run_plots.training_curves({'teacher': lines(2.0), 'student/kd': lines(3.0)})
  loss, top1 = figure.axes
  assert curves_drawn(loss) == {'teacher': [(1, 2), (2, 1), (3, 2 / 3), (4, 0.5)],
                                'student/kd': [(1, 3), (2, 1.5), (3, 1), (4, 0.75)]}
  assert curves_drawn(top1) == {
      'teacher': [(2, 50), (4, pytest.approx(60))],
      'student/kd': [(2, 75), (4, pytest.approx(90))]}
  assert (loss.get_ylabel(), top1.get_ylabel()) == ('training loss', 'validation top-1 %')
  assert (loss.get_xlabel(), loss.get_yscale(), top1.get_yscale()) == ('step', 'log', 'linear')
  (legend,) = loss.figure.legends
  assert texts(legend.get_texts()) == ['teacher', 'student/kd']
  assert [line.get_color() for line in legend.get_lines()] == [
      line.get_color() for line in loss.lines] == [line.get_color() for line in top1.lines]
  assert size(figure) == pytest.approx((11, 4.2))


def test_training_curves_without_validation_draw_the_training_accuracy():
  train = [line for line in lines(2.0) if 'train/loss' in line]
  top1 = run_plots.training_curves({'teacher': train}).axes[1]
  assert curves_drawn(top1)['teacher'] == [
      (1, 10), (2, 20), (3, pytest.approx(30)), (4, 40)]
  assert top1.get_ylabel() == 'training top-1 %'


def test_a_curve_of_one_point_has_a_marker():
  for axes in run_plots.training_curves({'teacher': lines(2.0, steps=1)[:1]}).axes:
    assert [(len(line.get_xdata()), line.get_marker()) for line in axes.lines] == [(1, '.')]


def test_losses_that_reach_zero_have_a_linear_axis():
  train = [{'step': step, 'train/loss': 1.0 - step, 'train/top1': 0.1} for step in range(4)]
  loss = run_plots.training_curves({'teacher': train}).axes[0]
  assert loss.get_yscale() == 'linear'
  assert curves_drawn(loss)['teacher'] == [(0, 1), (1, 0), (2, -1), (3, -2)]


@pytest.mark.parametrize('low, high', [
    (1.1, 1.9), (0.12, 0.8), (0.9, 8.0), (0.02, 3.0), (0.5, 60.0), (2e-6, 1010.0), (1e-9, 1e9)])
def test_a_logarithmic_axis_has_ticks_in_any_range(low, high):
  train = [{'step': 1, 'train/loss': low, 'train/ce': low, 'train/kl': low},
           {'step': 2, 'train/loss': high, 'train/ce': high, 'train/kl': high}]
  loss, _, terms = run_plots.training_curves({'student/kd': train}).axes
  for axes in (loss, terms):
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert 2 <= len(ticks) <= 12


@pytest.mark.parametrize('numbers', [
    (1.7e308, -1.7e308), (1.7e308,), (9e37, -9e37), (9e37, 5e-324), (-1.7e308, 9e37, 1e-300)])
def test_numbers_that_no_axis_can_show_are_left_out_with_one_warning(tmp_path, capsys, numbers):
  train = [{'step': step, 'train/loss': loss, 'train/ce': loss, 'train/kl': 1.0, 'val/top1': loss}
           for step, loss in enumerate((0.5, *numbers))]
  figure = run_plots.training_curves({'student/kd': train})
  style.save(figure, tmp_path / 'x.png')
  drawn = [loss for loss in (0.5, *numbers) if abs(loss) < 1e38]
  assert curves_drawn(figure.axes[0])['student/kd'] == [
      (train[(0.5, *numbers).index(loss)]['step'], loss) for loss in drawn]
  left_out = 3 * (1 + len(numbers) - len(drawn))
  assert capsys.readouterr().err.splitlines() == ([
      f'report: {left_out} numbers are too large to be drawn, and the training curves lack them']
      if left_out else [])


def test_names_of_phases_and_terms_are_text(tmp_path):
  name = 'student/\x1b[31m$\\frac{\n'
  figure = run_plots.training_curves({name: lines(2.0, **{'ce': 1.0, '\x1b$\\frac{': 1.0})})
  style.save(figure, tmp_path / 'x.png')
  written = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
  assert all(text.isprintable() for text in written)
  assert 'student/\ufffd[31m\\$\\frac{ ' in written


def test_28_curves_look_different():
  many = {f'student/{number}': lines(1.0 + number) for number in range(28)}
  loss = run_plots.training_curves(many).axes[0]
  assert len({(line.get_color(), line.get_linestyle()) for line in loss.lines}) == 28


def test_the_terms_of_a_loss_have_a_panel_for_each_phase():
  for count, height in ((0, 0), (3, 2.4), (4, 4.8)):  # Three panels in a row.
    students = {f'student/{number}': lines(2.0, ce=1.0 + number, kl=2.0)
                for number in range(count)}
    figure = run_plots.training_curves({'teacher': lines(2.0, ce=1.0), **students})
    panels = figure.axes[2:]
    assert [panel.get_title() for panel in panels] == [
        f'student/{number}: terms of the loss' for number in range(count)]
    for number, panel in enumerate(panels):
      assert curves_drawn(panel) == {
          'ce': [(step, (1 + number) / step) for step in range(1, 5)],
          'kl': [(step, 2 / step) for step in range(1, 5)]}
      assert texts(panel.get_legend().get_texts()) == ['ce', 'kl']
    assert size(figure)[1] == pytest.approx(4.2 + height)


def test_the_legend_of_many_phases_leaves_the_panels_free():
  many = {f'student/{number:02}': lines(2.0) for number in range(20)}
  figure = run_plots.training_curves({'student/dih': lines(2.0, ce=1.0, kl=1.0), **many})
  renderer = figure.canvas.get_renderer()
  figure.draw(renderer)
  (legend,) = figure.axes[0].figure.legends
  boxes = [legend.get_window_extent(renderer),
           *(axes.get_window_extent(renderer) for axes in figure.axes)]
  assert len(boxes) == 4
  assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
  assert len(legend.get_texts()) == 21


# Files.


def test_a_picture_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'x.png'
  path.write_bytes(b'an older picture')
  style.save(run_plots.training_curves({'teacher': lines(2.0)}), path)
  pixels = read_png(path)
  assert pixels.shape == (630, 1650, 4)
  assert pixels[0, 0].tolist() == [1, 1, 1, 1] and pixels.min() < 0.5  # Not only the background.
  assert [file.name for file in tmp_path.iterdir()] == ['x.png']
