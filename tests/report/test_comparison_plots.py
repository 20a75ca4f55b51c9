"""The pictures of a comparison show the numbers of the pairs: the drawn data are read back."""
import itertools

import matplotlib.colors
import numpy as np
import pytest

from kdih.report import comparison_plots, cost_plots
from kdih.report.aggregate import Gain
from tests.helpers import made_pairs
from tests.helpers.made_pairs import eight_pairs, heads


def texts(labels) -> list[str]:
  return [label.get_text() for label in labels]


# Gains.


def gains_drawn(axes) -> dict[float, tuple[float, float | None]]:
  """{height: (gain, half of the bar, None without one)}, of an axes of `gains`."""
  found = {}
  for container in axes.containers:
    line, _, bars = container
    (gain,), (height,) = line.get_data()
    half = None
    if bars:
      ((low, _), (high, _)), = bars[0].get_segments()
      half = (high - low) / 2
      assert (high + low) / 2 == pytest.approx(gain)
    found[height] = gain, half
  return found


def test_gains_and_their_standard_errors_stand_in_the_row_of_their_method():
  # 69.06, 71.65 and 70.17, from worst to best top.
  made = made_pairs.pair(methods=('ce', 'kd', 'dih'))
  single = made_pairs.row('at', 80.0, {}, seeds=(7,))
  single.gains['kd'] = Gain(-1.25, None, 1)
  made.rows[2].gains['ce'] = Gain(1.11, 0.4, 3)
  figure = comparison_plots.gains(made_pairs.pair(rows=(*made.rows, single)))
  ce, kd = figure.axes
  assert (ce.get_xlabel(), kd.get_xlabel()) == ('gain over ce, points', 'gain over kd, points')
  assert texts(ce.get_yticklabels()) == ['ce', 'dih', 'kd', 'at']
  assert list(ce.get_yticks()) == [0, 1, 2, 3]
  assert gains_drawn(ce) == {1: (1.11, pytest.approx(0.4)),
                             2: (pytest.approx(2.59), pytest.approx(0.15))}
  assert gains_drawn(kd) == {0: (pytest.approx(-2.59), pytest.approx(0.15)),
                             1: (pytest.approx(-1.48), pytest.approx(0.15)), 3: (-1.25, None)}
  assert [(text.get_position()[1], text.get_text()) for text in kd.texts] == [
      (0, '−2.59'), (1, '−1.48'), (3, '−1.25')]
  hollow = {container[0].get_ydata()[0] for container in kd.containers
            if matplotlib.colors.same_color(container[0].get_markerfacecolor(), 'white')}
  assert hollow == {3}


def only_gains(methods, **others):
  """A pair with only one picture."""
  return made_pairs.pair(methods=methods, members=0, parameters=(None, None), **others)


def test_the_text_of_the_gains_names_the_largest_and_what_is_hollow(tmp_path):
  several, one = (
      next(p.text for p in comparison_plots.draw([made], tmp_path) if p.name.startswith('gains'))
      for made in (only_gains(('ce', 'kd', 'dih')), only_gains(('ce', 'kd'), seeds=(1,))))
  assert several == (
      'Gains in points of test top-1, with their standard errors; kd has the largest gain over ce, '
      '+2.59; no method gains over kd: dih loses least, −1.48.')
  assert 'standard errors (hollow points: one seed, without an error); kd has' in one


# Cohorts.


def test_members_by_depth_are_points_of_accuracy_and_bars_from_zero():
  made = heads(4)
  made['members']['stage2']['test_best_val']['top1'] = 0.1234
  top1, entropy, ece = comparison_plots.members_by_depth(made).axes
  assert [axes.get_ylabel() for axes in (top1, entropy, ece)] == [
      'test top-1 %', 'entropy, nats', 'ECE, points']
  mean, accuracies = top1.lines
  assert accuracies.get_ydata().tolist() == pytest.approx([45, 12.34, 65, 75])
  assert mean.get_ydata()[0] == 76 and not top1.patches
  assert top1.get_title('right') == '- - mean 76.0'
  drawn = {axes: [bar.get_height() for bar in axes.patches] for axes in (entropy, ece)}
  assert drawn[entropy] == pytest.approx([2.2, 1.95, 1.7, 1.45])
  assert drawn[ece] == pytest.approx([21, 18.5, 16, 13.5])
  assert texts(ece.texts) == ['21.0', '18.5', '16.0', '13.5'] and not ece.lines
  for axes, heights in drawn.items():
    assert texts(axes.get_xticklabels()) == ['stage1', 'stage2', 'stage3', 'final']
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > max(heights)


def test_close_accuracies_of_members_fill_their_panel_and_no_label_crosses_the_mean():
  made = heads(3)
  for name, top1 in {'stage1': 0.95, 'stage2': 0.96, 'final': 0.97, 'mean': 0.972}.items():
    made['members'][name]['test_best_val']['top1'] = top1
  figure = comparison_plots.members_by_depth(made)
  figure.draw_without_rendering()
  axes = figure.axes[0]
  low, high = axes.get_ylim()
  assert 93 < low < 95 and 97.2 < high < 99
  assert texts(axes.texts) == ['95.0', '96.0', '97.0']
  boxes = [text.get_window_extent() for text in (*axes.texts, *figure.axes[1].texts)]
  assert all(box.y0 > axes.get_window_extent().y1 for box in boxes)


def test_members_that_are_calibrated_perfectly_begin_at_zero_too():
  made = heads(3)
  for member in made['analysis']['members'].values():
    member['ece'] = 0.0
  assert comparison_plots.members_by_depth(made).axes[2].get_ylim()[0] == 0


def test_many_members_stand_below_each_other():
  wide, high = (comparison_plots.members_by_depth(heads(count)).axes for count in (4, 12))
  assert len({axes.get_position().y0 for axes in wide}) == 1
  assert len({axes.get_position().x0 for axes in high}) == 1


def test_the_cells_of_the_agreement_matrix():
  matrix = [[1.0, 0.25, 0.5], [0.25, 1.0, 0.754], [0.5, 0.754, 1.0]]
  (axes,) = comparison_plots.agreement(['a', 'b', 'final'], matrix).axes
  (image,) = axes.images
  assert np.array_equal(image.get_array(), matrix) and image.get_clim() == (0, 1)
  assert {text.get_position(): text.get_text() for text in axes.texts} == {
      (column, at): f'{100 * matrix[at][column]:.0f}' for at in range(3) for column in range(3)}
  assert texts(axes.get_xticklabels()) == texts(axes.get_yticklabels()) == ['a', 'b', 'final']
  white = {text.get_text() for text in axes.texts if text.get_color() == 'white'}
  assert white == {'100', '75'}  # Which black would be hard to read on.


def test_leave_one_out_shows_every_rest_against_all():
  (axes,) = comparison_plots.without({'none': 0.76, 'stage1': 0.77, 'final': 0.7}).axes
  points = {tuple(line.get_ydata()): line.get_xdata() for line in axes.lines[1:]}
  assert points[(0,)] == pytest.approx([77]) and points[(1,)] == pytest.approx([70])
  assert points[(1, 1)] == pytest.approx([76, 70])
  assert list(axes.lines[0].get_xdata()) == [76, 76]
  assert texts(axes.get_yticklabels()) == ['without stage1', 'without final']
  assert texts(axes.texts) == ['+1.00', '−6.00'] and axes.get_title('left') == 'all members: 76.00'
  assert axes.yaxis_inverted()  # Shallow ones on top.


# Cost.


def points_drawn(axes) -> dict[str, list[tuple[float, float]]]:
  """{label: (cost, accuracy) of its points}, of an axes of the cost picture."""
  return {points.get_label(): [tuple(point) for point in points.get_offsets().tolist()]
          for points in axes.collections}


def looks(points) -> tuple:
  """Colour and marker of the points of a method, or of their entry in the legend."""
  (path,), (colour,) = points.get_paths(), points.get_facecolor().tolist()
  return tuple(map(tuple, path.vertices.tolist())), tuple(colour)


@pytest.fixture(scope='module', params=[lambda: [made_pairs.pair()], eight_pairs],
                ids=['one', 'eight'])
def cost(request):
  """(pairs, figure) of one pair, and of eight with all methods."""
  pairs = request.param()
  return pairs, cost_plots.accuracy_by_cost(pairs)


def test_every_accuracy_is_drawn_once_at_its_cost(cost):
  pairs, figure = cost
  assert [axes.get_xlabel() for axes in figure.axes] == ['parameters', 'FLOPs of one image']
  assert figure.axes[0].get_ylabel() == 'test top-1 %'
  for axes, kind in zip(figure.axes, ('parameters', 'flops'), strict=True):
    expected = {'teacher': list(dict.fromkeys(
        (pair.costs['teacher'][kind], pair.teacher_top1) for pair in pairs))}
    for pair in pairs:
      for row in pair.rows:
        expected.setdefault(row.method, []).append((pair.costs['student'][kind], row.mean))
    assert points_drawn(axes) == expected


def test_the_axes_are_logarithmic_and_hold_all_points(cost):
  for axes in cost[1].axes:
    assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'linear')
    costs, accuracies = zip(*itertools.chain(*points_drawn(axes).values()), strict=True)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < min(costs) and max(costs) < right and right / left < 5 * max(costs) / min(costs)
    assert low < min(accuracies) and max(accuracies) < high
    assert high - low < 1.2 * (max(accuracies) - min(accuracies))


def test_the_methods_of_a_student_stand_side_by_side_around_its_cost(cost):
  for axes in cost[1].axes:
    teacher, *methods = axes.collections
    shifts = [(points.get_offset_transform().transform(points.get_offsets())
               - axes.transData.transform(points.get_offsets())) * 72 / cost[1].dpi
              for points in methods]
    across = np.array([shift[0, 0] for shift in shifts])
    assert across == pytest.approx(np.linspace(-15, 15, len(methods)))
    assert all(np.ptp(shift[:, 0]) < 1e-6 and abs(shift[:, 1]).max() < 1e-6 for shift in shifts)
    assert teacher.get_offset_transform() == axes.transData


def test_a_line_marks_the_cost_that_the_methods_of_a_student_share(cost):
  pairs, figure = cost
  for axes, kind in zip(figure.axes, ('parameters', 'flops'), strict=True):
    lines = [line for line in axes.lines if line.get_linewidth() < 1]
    bands = [line for line in axes.lines if line.get_linewidth() > 30]
    assert len(lines) + len(bands) == len(axes.lines)
    expected = sorted({pair.costs['student'][kind] for pair in pairs})
    for drawn in (lines, bands):
      assert [line.get_xdata()[0] for line in drawn] == expected
      assert all(line.get_xdata()[0] == line.get_xdata()[1] for line in drawn)


def test_one_method_stands_at_its_cost():
  for axes in cost_plots.accuracy_by_cost([made_pairs.pair(methods=('ce',))]).axes:
    _, ce = axes.collections
    assert not axes.lines
    np.testing.assert_allclose(ce.get_offset_transform().transform(ce.get_offsets()),
                               axes.transData.transform(ce.get_offsets()))


def test_every_method_looks_unlike_the_others_and_as_in_the_legend(cost):
  pairs, figure = cost
  names = ['teacher', *dict.fromkeys(row.method for pair in pairs for row in pair.rows)]
  (legend,) = figure.legends
  assert texts(legend.get_texts()) == names
  entries = [looks(handle) for handle in legend.legend_handles]
  assert len(set(entries)) == len(names)
  assert [colour for _, colour in entries].count((0, 0, 0, 1)) == 1  # Black: the teacher alone.
  assert entries[0][1] == (0, 0, 0, 1)
  for axes in figure.axes:
    assert [looks(points) for points in axes.collections] == entries


def test_the_name_of_a_model_stands_above_its_most_accurate_point(cost):
  pairs, figure = cost
  for axes, kind in zip(figure.axes, ('parameters', 'flops'), strict=True):
    best: dict = {}
    for pair in pairs:
      for name, role, accuracies in (
          (pair.teacher, 'teacher', [pair.teacher_top1]),
          (pair.student, 'student', [row.mean for row in pair.rows])):
        at = name, pair.costs[role][kind]
        best[at] = max(best.get(at, 0), *accuracies)
    assert sorted((text.get_text(), *text.xy) for text in axes.texts) == sorted(
        (name, x, y) for (name, x), y in best.items())
    assert all(text.xyann[1] > 0 and text.get_va() == 'bottom' for text in axes.texts)


def test_42_methods_look_different():
  figure = cost_plots.accuracy_by_cost([made_pairs.pair(methods=[f'm{at}' for at in range(42)])])
  assert len({looks(points) for points in figure.axes[0].collections}) == 43


def test_a_method_may_be_called_teacher_and_names_may_be_long():
  names = ['teacher', 'kd_of_the_very_much_longer_name', 'at_of_the_very_much_longer_name',
           '$x$']
  figure = cost_plots.accuracy_by_cost([made_pairs.pair(methods=names, student='$' + 'a' * 40)])
  assert texts(figure.legends[0].get_texts()) == [
      'teacher', 'teacher', 'kd_of_the_ve…h_longer_name', 'at_of_the_ve…h_longer_name', r'\$x\$']
  assert texts(figure.axes[0].texts) == [rf'\${"a" * 11}…{"a" * 13}', 'resnet110']


def test_a_cost_that_is_unknown_has_no_panel_and_no_teacher_no_point():
  figure = cost_plots.accuracy_by_cost([made_pairs.pair(
      methods=('ce',), teacher_top1=None,
      costs={'teacher': {'parameters': 9, 'flops': None},
             'student': {'parameters': 7, 'flops': None}})])
  assert [axes.get_xlabel() for axes in figure.axes] == ['parameters']
  assert texts(figure.legends[0].get_texts()) == ['ce']
  assert points_drawn(figure.axes[0]) == {'ce': [(7, 69.06)]}
  assert cost_plots.accuracy_by_cost([made_pairs.pair(parameters=(None, None))]) is None


# Which pictures there are.


@pytest.mark.slow
def test_which_pictures_are_drawn_and_their_names(tmp_path):
  long = 'a' * 300
  two = 'ce', 'kd'
  made = [made_pairs.pair(methods=two, members=2),
          made_pairs.pair(methods=two, members=2, protocol='{"seed": 2}'),
          made_pairs.pair('../x', 'b/c', methods=two, members=0),
          made_pairs.pair(long, long + 'b', data=long, members=0, methods=two)]
  pictures = comparison_plots.draw(made, tmp_path / '.')
  assert [picture.name for picture in pictures] == [
      'cost_cifar100', f'cost_{"a" * 48}', 'gains_cifar100_resnet110_resnet20',
      'gains_cifar100_resnet110_resnet20-2', 'gains_cifar100_..-x_b-c',
      f'gains_{"a" * 48}_{"a" * 48}_{"a" * 47}b',
      'members_cifar100_resnet110', 'agreement_cifar100_resnet110', 'without_cifar100_resnet110']
  assert {path.name for path in tmp_path.iterdir()} == {
      f'{picture.name}.{suffix}' for picture in pictures for suffix in ('png', 'svg')}
  headings = comparison_plots.headings(made)
  assert headings[:3] == [
      'cifar100: resnet110 → resnet20 (protocol 1 of 2)',
      'cifar100: resnet110 → resnet20 (protocol 2 of 2)', 'cifar100: ../x → b/c']
  assert [picture.section for picture in pictures[2:6]] == headings


def test_names_that_differ_in_what_files_cannot_hold_have_files_of_their_own(tmp_path):
  made = [only_gains(('ce', 'kd'), student=name) for name in ('A-b', 'a/b', 'a:b')]
  assert [picture.name for picture in comparison_plots.draw(made, tmp_path)] == [
      'gains_cifar100_resnet110_A-b', 'gains_cifar100_resnet110_a-b-2',
      'gains_cifar100_resnet110_a-b-3']
