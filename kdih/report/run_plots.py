"""The pictures of the report of one run."""
import itertools
from typing import Any

from etils import epath
from matplotlib import ticker
from matplotlib.axes import Axes

from kdih.cohort.members import FINAL, MEAN
from kdih.report.style import (
  COLOURS,
  GREY,
  MARKERS,
  STUDENT,
  TEACHER,
  clean,
  label_point,
  legend_columns,
  new_figure,
  save,
  shown,
)

_PANELS, _PANEL_HEIGHT = 3, 2.4  # Panels in a row, and inches of one.
_LEGEND_WIDTH = 2.0  # Inches of a further column of the legend.
_LINES = ('-', '--', '-.', ':')  # They go round with seven colours, so that 28 curves differ.


def accuracy_by_depth(results: dict[str, Any], path: epath.PathLike) -> None:
  """Draws the test accuracy of heads, teacher and cohort mean, and of the students beside them.

  Args:
    results: of a run, see `Workdir.results`; one classifier at least is needed.
    path: of the PNG.
  """
  members = _accuracies(results.get('heads', {}).get('members', {}))
  mean = members.pop(MEAN, None)
  final = members.pop(FINAL, None)
  if 'teacher' in results:
    final = _accuracies(results)['teacher']
  depth = {**members, **({} if final is None else {'teacher': final})}
  students = _accuracies(results.get('student', {}))
  figure = new_figure(2.5 + 0.62 * (len(depth) + len(students)), 4.2)
  axes = figure.add_subplot()

  # What was measured.
  axes.plot(range(len(depth)), list(depth.values()), 'o-', color=TEACHER)
  before = 0.0
  for at, accuracy in enumerate(depth.values()):
    falls = accuracy < before  # The label goes to the side that the line does not come from.
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
  margin = max(0.12 * (max(values) - min(values)), 1)  # A point at least: noise is to look small.
  axes.set_ylim(min(values) - margin, max(values) + margin)
  axes.set_ylabel('test top-1 %')

  # What it was measured of.
  names = [*depth, *students]
  long = any(len(name) > 7 for name in names)
  axes.set_xticks(range(len(names)), names, rotation=40 if long else 0,
                  ha='right' if long else 'center', rotation_mode='anchor')
  axes.set_xlim(-0.7, len(names) - 0.4)
  if depth and students:
    axes.axvline(len(depth) - 0.5, color=GREY, linewidth=0.8)
  # Above each of the two groups its title; one point is no depth.
  above = axes.get_xaxis_transform()
  if len(depth) > 1:
    axes.text((len(depth) - 1) / 2, 1.02, 'cohort, by depth', ha='center', color=GREY,
              transform=above)
  if students:
    axes.text((len(depth) + len(names) - 1) / 2, 1.02, 'students', ha='center', color=GREY,
              transform=above)
  clean(axes)
  save(figure, path)


def _accuracies(classifiers: dict[str, dict]) -> dict[str, float]:
  return {name: 100 * result['test_best_val']['top1']
          for name, result in classifiers.items() if 'test_best_val' in result}


def training_curves(curves: dict[str, list[dict]], path: epath.PathLike) -> None:
  """Draws training loss, and validation (else training) accuracy, by step.

  Below them each phase whose loss has several terms gets a panel of these.

  Args:
    curves: {phase: the lines of its `metrics.jsonl`}.
    path: of the PNG.
  """
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
  if min(losses, default=0) > 0:  # Losses of methods differ in scale.
    _scale_by_logarithm(left, (1, 2, 3, 5))
  figure.legend(*left.get_legend_handles_labels(), loc='outside right upper', frameon=False,
                ncols=columns)
  for part in below:
    panels = part.subplots(rows, _PANELS, squeeze=False).ravel()
    for panel in panels[len(terms):]:
      panel.remove()
    for panel, (phase, names) in zip(panels, terms.items(), strict=False):
      _draw_terms(panel, phase, names, curves[phase])
  save(whole, path)


def _terms(lines: list[dict]) -> list[str]:
  """Returns the names of the terms of the loss, in the order of the file."""
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
  """Labels these multiples of the powers of ten."""
  axes.set_yscale('log')
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=labelled))
  axes.yaxis.set_major_formatter('{x:g}')
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _draw_curves(axes: Axes, curves: dict[str, list[dict]], name: str, scale: int) -> None:
  styles = zip(itertools.cycle(COLOURS), itertools.cycle(_LINES), strict=False)
  for (phase, lines), (colour, line_style) in zip(curves.items(), styles, strict=False):
    points = [(line['step'], scale * line[name]) for line in lines if name in line]
    axes.plot([step for step, _ in points], [value for _, value in points], label=phase,
              color=colour, linestyle=line_style, linewidth=1.3,
              marker='.' if len(points) == 1 else '')
  axes.set_xlabel('step')
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  clean(axes)
