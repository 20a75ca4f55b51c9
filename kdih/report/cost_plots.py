"""The picture of accuracy against what models cost."""
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from kdih.report.aggregate import Pair
from kdih.report.style import COLOURS, DPI, MARKERS, clean, legend_columns, new_figure, shown

_COSTS = {'parameters': 'parameters', 'flops': 'FLOPs of one image'}
_TEACHER: dict[str, Any] = {'marker': 'o', 'color': 'black', 'markersize': 7, 'linestyle': ''}
# In typographic points.
_APART = 8.0  # Between the centres of two markers.
_GAP = 5.0  # Between two columns.


@dataclasses.dataclass
class _Column:
  """What stands above one cost: a teacher, or the students of a pair.

  Attributes:
    name: its label.
    cost: on the axis.
    points: (top-1 in percent, style) of each.
  """

  name: str
  cost: float
  points: list[tuple[float, dict]]


def accuracy_by_cost(pairs: Sequence[Pair]) -> Figure | None:
  """Test top-1 against parameters and FLOPs, a column of points for each model.

  Within a column, points stand beside each other where they would overlap. So do columns: a thin
  line leads from each to its cost.

  Args:
    pairs: of one data set.

  Returns:
    The figure, or None where no cost is known.
  """
  styles = _styles(pairs)
  panels = {title: columns for cost, title in _COSTS.items()
            if (columns := list(_columns(pairs, cost, styles)))}
  if not panels:
    return None

  # Panels of few columns stand side by side. All share the axis of accuracies.
  crowded = max(map(len, panels.values())) > 6
  columns_of_legend = 1 if crowded else legend_columns(len(styles))
  longest = max(len(column.name) for columns in panels.values() for column in columns)
  height = 3.8 + 0.07 * longest  # Inches; the names stand upright.
  if crowded:
    figure = new_figure(11, height * len(panels))
    grid = figure.subplots(len(panels), 1, sharey=True, squeeze=False)
  else:
    figure = new_figure(4.6 * len(panels) + 1.7 * columns_of_legend, height)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
  for axes in grid[:, 0]:
    axes.set_ylabel('test top-1 %')
  axes_of_panels = list(grid.flat)
  labels = [_prepare(axes, columns, title)
            for axes, (title, columns) in zip(axes_of_panels, panels.items(), strict=True)]
  points = [point for columns in panels.values() for column in columns for point in column.points]
  accuracies = [top1 for top1, _ in points]
  margin = max(0.08 * (max(accuracies) - min(accuracies)), 0.5)
  axes_of_panels[0].set_ylim(min(accuracies) - margin, max(accuracies) + margin)

  handles = [Line2D([], [], **style, label=shown(name)) for name, style in styles.items()]
  if any(style is _TEACHER for _, style in points):
    handles.insert(0, Line2D([], [], **_TEACHER, label='teacher'))
  figure.legend(handles=handles, loc='outside right upper', frameon=False,
                ncols=columns_of_legend)

  figure.draw_without_rendering()
  _widen(figure, axes_of_panels, list(panels.values()), abreast=not crowded)
  figure.set_layout_engine('none')  # What follows depends on where everything is.
  for axes, columns, names in zip(axes_of_panels, panels.values(), labels, strict=True):
    _draw(axes, columns, names)
  return figure


def _styles(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
  """How each method is drawn: colour and marker, together unlike those of 55 others."""
  names = dict.fromkeys(row.method for pair in pairs for row in pair.rows)
  looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
  return {name: {'marker': marker, 'color': colour, 'linestyle': '',
                 'markersize': 8 if marker == '*' else 5.5}  # A star of equal size looks smaller.
          for name, (colour, marker) in zip(names, looks, strict=False)}


def _columns(pairs: Sequence[Pair], cost: str, styles: dict[str, dict]) -> Iterator[_Column]:
  """Those of the teachers, each once, and of the students."""
  teachers = {(pair.teacher, pair.teacher_top1, _cost(pair, 'teacher', cost)): pair
              for pair in pairs}
  for name, top1, value in teachers:
    if value and top1 is not None:
      yield _Column(shown(name), value, [(top1, _TEACHER)])
  for pair in pairs:
    if value := _cost(pair, 'student', cost):
      yield _Column(f'{shown(pair.student)} ← {shown(pair.teacher)}', value,
                    [(row.mean, styles[row.method]) for row in pair.rows])


def _cost(pair: Pair, role: str, cost: str) -> int | None:
  return (pair.costs.get(role) or {}).get(cost)


def _prepare(axes: Axes, columns: list[_Column], title: str) -> list[Text]:
  """Sets scale, limits and labels, so that places on the axes are known.

  Returns the names of the columns, which are still to be put above them.
  """
  columns.sort(key=lambda column: column.cost)
  axes.set_xscale('log')
  axes.set_xlim(columns[0].cost / 2, columns[-1].cost * 2)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
  axes.xaxis.set_major_formatter(ticker.EngFormatter())
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel(title)
  clean(axes)
  return [axes.text(0.5, 1.05, column.name, rotation=90, ha='center', va='bottom', fontsize=8,
                    transform=axes.transAxes) for column in columns]


def _widen(
    figure: Figure, axes_of_panels: list[Axes], panels: list[list[_Column]], abreast: bool
) -> None:
  """Makes the figure so wide that its columns have room beside each other."""
  lacking = max(_widths(_offsets(axes, columns)).sum() - _size(axes)[0]
                for axes, columns in zip(axes_of_panels, panels, strict=True))
  if lacking > 0:
    more = 1.02 * lacking / 72 * (len(panels) if abreast else 1)
    figure.set_figwidth(figure.get_figwidth() + more)
    figure.draw_without_rendering()


def _size(axes: Axes) -> tuple[float, float]:
  """Width and height in typographic points."""
  return axes.bbox.width * 72 / DPI, axes.bbox.height * 72 / DPI


def _offsets(axes: Axes, columns: list[_Column]) -> list[list[float]]:
  """How far each point stands from the middle of its column, in typographic points."""
  low, high = axes.get_ylim()
  _, height = _size(axes)
  return [_swarm([top1 / (high - low) * height for top1, _ in column.points])
          for column in columns]


def _widths(offsets: list[list[float]]) -> np.ndarray:
  return np.array([np.ptp(offset) + _APART + _GAP for offset in offsets])


def _draw(axes: Axes, columns: list[_Column], labels: list[Text]) -> None:
  """Draws the columns as near to their costs as they have room."""
  width, _ = _size(axes)
  to_axes = axes.transData + axes.transAxes.inverted()
  costs = np.array([to_axes.transform((column.cost, 0))[0] * width for column in columns])
  offsets = _offsets(axes, columns)
  places = _apart(costs, _widths(offsets), width)
  for column, label, cost, place, offset in zip(
      columns, labels, costs, places, offsets, strict=True):
    label.set_x(place / width)
    axes.plot(np.array([cost, cost, place, place]) / width, [0, 0.015, 0.05, 1.04],
              transform=axes.transAxes, clip_on=False, color='#cccccc', linewidth=0.7, zorder=0.5)
    for (top1, style), shift in zip(column.points, offset, strict=True):
      axes.plot((place + shift) / width, top1, **style, clip_on=False,
                transform=axes.get_yaxis_transform())


def _swarm(heights: Sequence[float]) -> list[float]:
  """How far points go from the middle so that none overlaps: each as little as lower ones allow."""
  steps = sorted(range(-len(heights), len(heights) + 1), key=abs)
  offsets: dict[int, float] = {}
  for at in np.argsort(heights, kind='stable').tolist():
    offsets[at] = next(
        _APART * step / 2 for step in steps
        if all(abs(_APART * step / 2 - x) >= _APART or abs(heights[at] - heights[other]) >= _APART
               for other, x in offsets.items()))
  middle = (max(offsets.values()) + min(offsets.values())) / 2
  return [offsets[at] - middle for at in range(len(heights))]


def _apart(wanted: np.ndarray, widths: np.ndarray, room: float) -> np.ndarray:
  """Places in 0..room near to the ascending `wanted`, where things so wide do not touch.

  Those that touch are pooled and centred on what they want, as in isotonic regression.
  """
  starts = np.cumsum(widths) - widths / 2  # The places of things that all touch.
  groups: list[list[float]] = []
  for place in wanted - starts:
    groups.append([place])
    while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
      groups[-2:] = [groups[-2] + groups[-1]]
  pooled = np.concatenate([np.full(len(group), np.mean(group)) for group in groups])
  return np.clip(pooled, 0, room - widths.sum()) + starts
