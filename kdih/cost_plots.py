"""The picture of accuracy against what models cost."""
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from kdih.comparison import Pair
from kdih.plotting import COLOURS, MARKERS, clean, new_figure, shown

_COSTS = {'parameters': 'parameters', 'flops': 'FLOPs of one image'}
_TEACHER = {'marker': 'o', 'color': 'black', 'markersize': 7, 'linestyle': ''}
_ABREAST = 6  # Columns up to which the panels stand side by side.
# In typographic points: between the centres of two markers, and between two columns.
_APART, _GAP = 6.5, 6.0


@dataclasses.dataclass
class _Column:
  """What stands above one cost: a teacher, or the students of a pair.

  Attributes:
    name: its label.
    cost: on the axis.
    points: (top-1 in percent, style) of each.
    label: above the axes.
  """

  name: str
  cost: float
  points: list[tuple[float, dict]]
  label: Text | None = None


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
  crowded = max(map(len, panels.values())) > _ABREAST
  figure, axes_of_panels = _panels(len(panels), crowded, len(styles))
  for axes, (title, columns) in zip(axes_of_panels, panels.items(), strict=True):
    _prepare(axes, columns, title)
  _limit([top1 for columns in panels.values() for column in columns
          for top1, _ in column.points], axes_of_panels[0])
  handles = [Line2D([], [], **_TEACHER, label='teacher'),
             *(Line2D([], [], **style, label=shown(name)) for name, style in styles.items())]
  figure.legend(handles=handles, loc='outside right upper', frameon=False,
                ncols=1 if crowded else _legend_columns(len(styles)))
  figure.draw_without_rendering()
  figure.set_layout_engine('none')  # What follows depends on where everything is.
  for axes, columns in zip(axes_of_panels, panels.values(), strict=True):
    _draw(axes, columns)
  return figure


def _styles(pairs: Sequence[Pair]) -> dict[str, dict]:
  """How each method is drawn: colour and marker, together unlike those of 55 others."""
  names = dict.fromkeys(row.method for pair in pairs for row in pair.rows)
  looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
  return {name: {'marker': marker, 'color': colour, 'markersize': 5.5, 'linestyle': ''}
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


def _legend_columns(methods: int) -> int:
  return 1 + methods // 18


def _panels(count: int, crowded: bool, methods: int) -> tuple[Figure, list[Axes]]:
  if crowded:
    figure, shape = new_figure(11, 5.4 * count), (count, 1)
  else:
    figure, shape = new_figure(4.6 * count + 1.7 * _legend_columns(methods), 5), (1, count)
  return figure, list(figure.subplots(*shape, sharey=True, squeeze=False).flat)


def _prepare(axes: Axes, columns: list[_Column], title: str) -> None:
  """Sets scale, limits and labels, so that places on the axes are known."""
  columns.sort(key=lambda column: column.cost)
  axes.set_xscale('log')
  axes.set_xlim(columns[0].cost / 2, columns[-1].cost * 2)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
  axes.xaxis.set_major_formatter(ticker.EngFormatter())
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel(title)
  if axes.get_subplotspec().is_first_col():
    axes.set_ylabel('test top-1 %')
  clean(axes)
  for column in columns:
    column.label = axes.text(0.5, 1.05, column.name, rotation=90, ha='center', va='bottom',
                             fontsize=8, transform=axes.transAxes)


def _limit(accuracies: list[float], axes: Axes) -> None:
  margin = max(0.08 * (max(accuracies) - min(accuracies)), 0.5)
  axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)


def _draw(axes: Axes, columns: list[_Column]) -> None:
  """Draws the columns as near to their costs as they have room."""
  assert axes.figure is not None
  scale = axes.bbox.size * 72 / axes.figure.dpi  # Typographic points of the axes.
  to_axes = axes.transData + axes.transAxes.inverted()
  offsets = [_swarm([to_axes.transform((column.cost, top1))[1] * scale[1]
                     for top1, _ in column.points]) for column in columns]
  costs = np.array([to_axes.transform((column.cost, 0))[0] * scale[0] for column in columns])
  widths = np.array([np.ptp(offset) + _APART + _GAP for offset in offsets])
  places = _apart(costs, widths)
  for column, cost, place, offset in zip(columns, costs, places, offsets, strict=True):
    column.label.set_x(place / scale[0])
    axes.plot(np.array([cost, cost, place, place]) / scale[0], [0, 0.015, 0.05, 1.04],
              transform=axes.transAxes, clip_on=False, color='#cccccc', linewidth=0.7, zorder=0.5)
    middle = (max(offset) + min(offset)) / 2
    for (top1, style), shift in zip(column.points, offset, strict=True):
      axes.plot((place + shift - middle) / scale[0], top1, **style, clip_on=False,
                transform=axes.get_yaxis_transform())


def _swarm(heights: Sequence[float]) -> list[float]:
  """How far points go sideways so that none overlaps: each as little as those below it allow."""
  steps = sorted(range(-len(heights), len(heights) + 1), key=abs)
  offsets: dict[int, float] = {}
  for at in np.argsort(heights, kind='stable').tolist():
    offsets[at] = next(
        _APART * step / 2 for step in steps
        if all(abs(_APART * step / 2 - x) >= _APART or abs(heights[at] - heights[other]) >= _APART
               for other, x in offsets.items()))
  return [offsets[at] for at in range(len(heights))]


def _apart(wanted: np.ndarray, widths: np.ndarray) -> np.ndarray:
  """Places near to the ascending `wanted`, in their order, where things so wide do not touch.

  Those that touch are pooled and centred on what they want, as in isotonic regression.
  """
  starts = np.cumsum(widths) - widths / 2  # The places of things that all touch.
  groups: list[list[float]] = []
  for place in wanted - starts:
    groups.append([place])
    while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
      groups[-2:] = [groups[-2] + groups[-1]]
  return np.concatenate([np.full(len(group), np.mean(group)) for group in groups]) + starts
