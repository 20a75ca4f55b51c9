"""The pictures in the report of one run."""
import itertools
import logging
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdih.cohort.members import FINAL, MEAN
from kdih.report.style import (
  COLOURS,
  GREY,
  MARKERS,
  STUDENT,
  TEACHER,
  accuracy_limits,
  clean,
  label_point,
  legend_columns,
  new_figure,
  shown,
)

logger = logging.getLogger(__name__)

_PANELS, _PANEL_HEIGHT = 3, 2.4  # Panels in a row, and inches of one.
_LEGEND_WIDTH = 2.0  # Inches for each further column of the legend.
_DECADES = 100  # A logarithmic axis that spans more than this factor has labels at powers of ten.
_LARGEST = 1e38  # Larger numbers are not finite in float32, and no axis spans those of float64.
_LINES = ('-', '--', '-.', ':')  # With seven colours, these distinguish 28 curves.


def accuracy_by_depth(results: dict[str, Any]) -> Figure:
  """Returns a picture of the test accuracy of heads, teacher, cohort mean and students.

  Args:
    results: results of a run with at least one classifier, see `Workdir.results`.
  """
  members = _accuracies(results.get('heads', {}).get('members', {}))
  mean = members.pop(MEAN, None)
  final = members.pop(FINAL, None)
  if 'teacher' in results:
    final = _accuracies(results)['teacher']
  depth = {**members, **({} if final is None else {FINAL: final})}
  students = _accuracies(results.get('student', {}))
  figure = new_figure(2.5 + 0.62 * (len(depth) + len(students)), 4.2)
  axes = figure.add_subplot()

  # The accuracies.
  axes.plot(range(len(depth)), list(depth.values()), 'o-', color=TEACHER)
  before = 0.0
  for at, accuracy in enumerate(depth.values()):
    falls = accuracy < before  # The label is on the side without the line.
    label_point(axes, at, accuracy, (4 if falls else -4, 6), 'left' if falls else 'right')
    before = accuracy
  markers = itertools.cycle(MARKERS)
  for at, (accuracy, marker) in enumerate(
      zip(students.values(), markers, strict=False), len(depth)):
    axes.plot(at, accuracy, marker, color=STUDENT, markersize=8)
    label_point(axes, at, accuracy, (0, 9), 'center')
  values = [*depth.values(), *students.values()]
  if mean is not None:
    axes.axhline(mean, color=GREY, linestyle='--', linewidth=1, zorder=1.5,
                 label=f'cohort mean {mean:.1f}')
    figure.legend(loc='outside upper right', frameon=False)
    values.append(mean)
  axes.set_ylim(accuracy_limits(values))
  axes.set_ylabel('test top-1 %')

  # The classifiers.
  names = [*depth, *students]
  long = any(len(name) > 7 for name in names)
  axes.set_xticks(range(len(names)), map(shown, names), rotation=40 if long else 0,
                  ha='right' if long else 'center', rotation_mode='anchor')
  axes.set_xlim(-0.7, len(names) - 0.4)
  if depth and students:
    axes.axvline(len(depth) - 0.5, color=GREY, linewidth=0.8)
  # A title above each of the two groups; one point needs no title.
  above = axes.get_xaxis_transform()
  if len(depth) > 1:
    axes.text((len(depth) - 1) / 2, 1.02, 'cohort, by depth', ha='center', color=GREY,
              transform=above)
  if students:
    axes.text((len(depth) + len(names) - 1) / 2, 1.02, 'students', ha='center', color=GREY,
              transform=above)
  clean(axes)
  return figure


def _accuracies(classifiers: dict[str, dict]) -> dict[str, float]:
  """Returns {classifier: test top-1 in percent} of the variables that are kept."""
  return {name: 100 * result['test_best_val']['top1']
          for name, result in classifiers.items() if 'test_best_val' in result}


def training_curves(curves: dict[str, list[dict]]) -> Figure:
  """Returns a picture of the training loss and the validation accuracy of all phases, by step.

  Without validation the training accuracy is drawn. Each phase whose loss has several terms has a
  panel with the values of these terms. Numbers that are too large to be drawn are left out, with
  one warning.

  Args:
    curves: {phase: the lines of its `metrics.jsonl`}.
  """
  curves = _drawable(curves)
  validated = any('val/top1' in line for lines in curves.values() for line in lines)
  terms = {phase: names for phase, lines in curves.items() if len(names := _terms(lines)) > 1}
  rows = -(-len(terms) // _PANELS)
  columns = legend_columns(len(curves))
  whole = new_figure(11 + _LEGEND_WIDTH * (columns - 1), 4.2 + _PANEL_HEIGHT * rows)
  figure, *below = whole.subfigures(
      1 + bool(rows), 1, squeeze=False, height_ratios=[4.2, *[_PANEL_HEIGHT * rows][:rows]])[:, 0]
  left, right = figure.subplots(1, 2)
  _draw_curves(left, curves, 'train/loss', 1)
  _draw_curves(right, curves, 'val/top1' if validated else 'train/top1', 100)
  left.set_ylabel('training loss')
  right.set_ylabel(f'{"validation" if validated else "training"} top-1 %')
  losses = [line['train/loss'] for lines in curves.values() for line in lines
            if 'train/loss' in line]
  if min(losses, default=0) > 0:  # The losses of different methods differ in scale.
    _scale_by_logarithm(left, (1, 2, 3, 5))
  figure.legend(*left.get_legend_handles_labels(), loc='outside right upper', frameon=False,
                ncols=columns)
  for part in below:
    panels = part.subplots(rows, _PANELS, squeeze=False).ravel()
    for panel in panels[len(terms):]:
      panel.remove()
    for panel, (phase, names) in zip(panels, terms.items(), strict=False):
      _draw_terms(panel, phase, names, curves[phase])
  return whole


def _drawable(curves: dict[str, list[dict]]) -> dict[str, list[dict]]:
  """Returns the curves without the numbers that no axis can show; a warning says how many."""
  drawable = {phase: [{name: value for name, value in line.items()
                       if name == 'step' or abs(value) < _LARGEST} for line in lines]
              for phase, lines in curves.items()}
  if left_out := sum(len(line) - len(kept) for phase, lines in curves.items()
                     for line, kept in zip(lines, drawable[phase], strict=True)):
    logger.warning(f'report: {left_out} numbers are too large to be drawn, and the training curves '
                   'lack them')
  return drawable


def _terms(lines: list[dict]) -> list[str]:
  """Returns the names of the terms of the loss, in the order of the lines."""
  names = dict.fromkeys(name.removeprefix('train/') for line in lines for name in line
                        if name.startswith('train/'))
  return [name for name in names if name not in ('loss', 'top1')]


def _draw_terms(axes: Axes, phase: str, names: list[str], lines: list[dict]) -> None:
  """Draws the terms of a phase's loss by step."""
  values = []
  styles = zip(itertools.cycle(COLOURS), itertools.cycle(_LINES), strict=False)
  for name, (colour, line_style) in zip(names, styles, strict=False):
    points = [(line['step'], line[f'train/{name}']) for line in lines if f'train/{name}' in line]
    values += [value for _, value in points]
    axes.plot(*zip(*points, strict=True), label=shown(name), color=colour, linestyle=line_style,
              linewidth=1.2, marker='.' if len(points) == 1 else '')
  if min(values) > 0:
    _scale_by_logarithm(axes, (1, 3))
  axes.set_title(f'{shown(phase)}: terms of the loss', fontsize=9, color=GREY)
  axes.legend(frameon=False, fontsize=7)
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.tick_params(labelsize=8)
  clean(axes)


def _scale_by_logarithm(axes: Axes, labelled: tuple[int, ...]) -> None:
  """Makes the y axis logarithmic, with labels at these multiples of the powers of ten."""
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  if high > _DECADES * low:  # With `subs`, LogLocator has no ticks in a wide range.
    labelled = (1,)
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=labelled))
  axes.yaxis.set_major_formatter('{x:g}')
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _draw_curves(axes: Axes, curves: dict[str, list[dict]], name: str, scale: int) -> None:
  styles = zip(itertools.cycle(COLOURS), itertools.cycle(_LINES), strict=False)
  for (phase, lines), (colour, line_style) in zip(curves.items(), styles, strict=False):
    points = [(line['step'], scale * line[name]) for line in lines if name in line]
    axes.plot([step for step, _ in points], [value for _, value in points], label=shown(phase),
              color=colour, linestyle=line_style, linewidth=1.3,
              marker='.' if len(points) == 1 else '')
  axes.set_xlabel('step')
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  clean(axes)
