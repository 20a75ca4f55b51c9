"""The picture of accuracy against what models cost."""
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from kdih.report.aggregate import Pair
from kdih.report.style import COLOURS, GREY, MARKERS, clean, legend_columns, new_figure, shown

_COSTS = {'parameters': 'parameters', 'flops': 'FLOPs of one image'}
_TEACHER = '#000000'
# Six colours and seven markers make 42 combinations; black and circles are for teachers, and stars
# look smaller than other markers.
_METHOD_COLOURS = [colour for colour in COLOURS if colour != _TEACHER]
_METHOD_MARKERS = MARKERS.replace('*', '')
_BAND = '#f0f0f0'
_WIDTH = 30.0  # Points on paper, from the leftmost to the rightmost method of a student.


def accuracy_by_cost(pairs: Sequence[Pair]) -> Figure | None:
  """Returns a scatter plot of test top-1 against parameters and FLOPs, with logarithmic axes.

  Each method has a marker and a colour; the teachers are black circles. The methods of a student
  are drawn side by side in a pale band, in which a line marks the student's cost. The name of a
  model is above its most accurate point.

  Args:
    pairs: pairs of one data set.

  Returns:
    The figure, or None if no cost of a student is known.
  """
  costs = [cost for cost in _COSTS if any(pair.costs['student'][cost] for pair in pairs)]
  if not costs:
    return None
  methods = list(dict.fromkeys(row.method for pair in pairs for row in pair.rows))
  columns = legend_columns(len(methods))
  figure = new_figure(4.6 * len(costs) + 1.7 * columns, 4.8)
  panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
  for axes, cost in zip(panels, costs, strict=True):
    _draw(axes, pairs, cost, methods)
  panels[0].set_ylabel('test top-1 %')
  figure.legend(*panels[0].get_legend_handles_labels(), loc='outside right upper', frameon=False,
                ncols=columns)
  return figure


def _draw(axes: Axes, pairs: Sequence[Pair], cost: str, methods: Sequence[str]) -> None:
  teachers = [(pair.teacher, pair.costs['teacher'][cost], pair.teacher_top1) for pair in pairs]
  drawn = [(model, x, y) for model, x, y in dict.fromkeys(teachers) if x and y is not None]
  if drawn:
    axes.scatter([x for _, x, _ in drawn], [y for _, _, y in drawn], s=50, color=_TEACHER,
                 label='teacher')
  students: list[tuple[str, int, float]] = []
  shifts = np.linspace(-_WIDTH / 2, _WIDTH / 2, len(methods)) if methods[1:] else [0.0]
  looks = zip(itertools.cycle(_METHOD_COLOURS), itertools.cycle(_METHOD_MARKERS), strict=False)
  for method, shift, (colour, marker) in zip(methods, shifts, looks, strict=False):
    points = [(pair.student, x, row.mean) for pair in pairs for row in pair.rows
              if row.method == method and (x := pair.costs['student'][cost])]
    axes.scatter([x for _, x, _ in points], [y for _, _, y in points], s=45, color=colour,
                 marker=marker, alpha=0.8, linewidths=0, label=shown(method),
                 transform=offset_copy(
                     axes.transData, axes.get_figure(root=True), x=shift, units='points'))
    students += points
  if methods[1:]:
    _draw_bands(axes, students)
  drawn += students
  for (model, x), group in itertools.groupby(sorted(drawn), key=lambda point: point[:2]):
    axes.annotate(shown(model), (x, max(y for _, _, y in group)), xytext=(0, 7),
                  textcoords='offset points', ha='center', va='bottom', rotation=90, fontsize=8)
  axes.set_xscale('log')
  axes.update_datalim([(x, y) for _, x, y in drawn])  # Points with an offset do not do this.
  axes.autoscale_view(scalex=False)
  axes.set_xlim(min(x for _, x, _ in drawn) / 2, 2 * max(x for _, x, _ in drawn))
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
  axes.xaxis.set_major_formatter(ticker.EngFormatter())
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel(_COSTS[cost])
  clean(axes)


def _draw_bands(axes: Axes, students: Sequence[tuple[str, int, float]]) -> None:
  """Draws a band behind the methods of each student, and a line at the student's cost.

  Args:
    axes: where to draw.
    students: (model, cost, accuracy) of the points.
  """
  for x, group in itertools.groupby(sorted(students, key=lambda point: point[1]),
                                    key=lambda point: point[1]):
    accuracies = [y for _, _, y in group]
    ends = min(accuracies), max(accuracies)
    axes.plot([x, x], ends, color=_BAND, linewidth=_WIDTH + 10, solid_capstyle='butt',
              zorder=0.8)
    axes.plot([x, x], ends, color=GREY, linewidth=0.6, zorder=0.9)
