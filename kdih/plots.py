"""The pictures of a report."""
import io
import itertools
from typing import Any

from etils import epath
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdih import cohort
from kdih.workdir import write_atomically

_DPI = 150
_GREY = '#666666'
_TEACHER, _STUDENT = '#0072b2', '#d55e00'
# Okabe and Ito's colours, which the colour-blind tell apart. Four line styles go round with seven
# colours, so that 28 curves differ.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#000000', '#e69f00', '#56b4e9')
_LINES = ('-', '--', '-.', ':')
_MARKERS = 'sD^vPX*p'


def accuracy_by_depth(results: dict[str, Any], path: epath.PathLike) -> None:
  """Draws the test accuracy of heads, teacher and cohort mean, and of the students beside them.

  Args:
    results: of a run, see `Workdir.results`; one classifier at least is needed.
    path: of the PNG.
  """
  members = _accuracies(results.get('heads', {}).get('members', {}))
  mean, final = members.pop(cohort.MEAN, None), members.pop(cohort.FINAL, None)
  if 'teacher' in results:
    final = _accuracies(results)['teacher']
  depth = {**members, **({} if final is None else {'teacher': final})}
  students = _accuracies(results.get('student', {}))
  figure = _figure(2.5 + 0.62 * (len(depth) + len(students)), 4.2)
  axes = figure.add_subplot()
  _draw_members(axes, depth)
  _draw_students(axes, students, len(depth))
  values = [*depth.values(), *students.values()]
  if mean is not None:
    axes.axhline(mean, color=_GREY, linestyle='--', linewidth=1, zorder=1.5,
                 label=f'cohort mean {mean:.1f}')
    figure.legend(loc='outside upper right', frameon=False)
    values.append(mean)
  margin = max(0.12 * (max(values) - min(values)), 1)  # A point at least: noise is to look small.
  axes.set_ylim(min(values) - margin, max(values) + margin)
  axes.set_ylabel('test top-1 %')
  _name_points(axes, list(depth), list(students))
  _clean(axes)
  _save(figure, path)


def _accuracies(classifiers: dict[str, dict]) -> dict[str, float]:
  return {name: 100 * result['test_best_val']['top1']
          for name, result in classifiers.items() if 'test_best_val' in result}


def _draw_members(axes: Axes, members: dict[str, float]) -> None:
  axes.plot(range(len(members)), list(members.values()), 'o-', color=_TEACHER)
  before = 0.0
  for at, accuracy in enumerate(members.values()):
    falls = accuracy < before  # The label goes to the side that the line does not come from.
    _label(axes, at, accuracy, (4 if falls else -4, 6), 'left' if falls else 'right')
    before = accuracy


def _draw_students(axes: Axes, students: dict[str, float], start: int) -> None:
  markers = itertools.cycle(_MARKERS)
  for at, (accuracy, marker) in enumerate(zip(students.values(), markers, strict=False), start):
    axes.plot(at, accuracy, marker, color=_STUDENT, markersize=8)
    _label(axes, at, accuracy, (0, 9), 'center')


def _label(axes: Axes, at: int, value: float, offset: tuple[int, int], side: str) -> None:
  axes.annotate(f'{value:.1f}', (at, value), xytext=offset, textcoords='offset points',
                ha=side, fontsize=9, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5})


def _name_points(axes: Axes, members: list[str], students: list[str]) -> None:
  names, split = members + students, len(members)
  long = any(len(name) > 7 for name in names)
  axes.set_xticks(range(len(names)), names, rotation=40 if long else 0,
                  ha='right' if long else 'center', rotation_mode='anchor')
  axes.set_xlim(-0.7, len(names) - 0.4)
  if members and students:
    axes.axvline(split - 0.5, color=_GREY, linewidth=0.8)
  titles = {'cohort, by depth': (split - 1) / 2 if split > 1 else None,
            'students': (split + len(names) - 1) / 2 if students else None}
  for title, at in titles.items():
    if at is not None:
      axes.text(at, 1.02, title, ha='center', color=_GREY, transform=axes.get_xaxis_transform())


def training_curves(curves: dict[str, list[dict]], path: epath.PathLike) -> None:
  """Draws training loss, and validation (else training) accuracy, by step.

  Args:
    curves: {phase: the lines of its `metrics.jsonl`}.
    path: of the PNG.
  """
  validated = any('val/top1' in line for lines in curves.values() for line in lines)
  figure = _figure(11, 4.2)
  left, right = figure.subplots(1, 2)
  _draw_curves(left, curves, 'train/loss', 1)
  _draw_curves(right, curves, 'val/top1' if validated else 'train/top1', 100)
  left.set_ylabel('training loss')
  right.set_ylabel(f'{"validation" if validated else "training"} top-1 %')
  if min(_values(curves, 'train/loss'), default=0) > 0:  # Losses of methods differ in scale.
    left.set_yscale('log')
    left.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    left.yaxis.set_major_formatter('{x:g}')
    left.yaxis.set_minor_locator(ticker.NullLocator())
  figure.legend(*left.get_legend_handles_labels(), loc='outside right upper', frameon=False)
  _save(figure, path)


def _values(curves: dict[str, list[dict]], name: str) -> list[float]:
  return [line[name] for lines in curves.values() for line in lines if name in line]


def _draw_curves(axes: Axes, curves: dict[str, list[dict]], name: str, scale: int) -> None:
  styles = zip(itertools.cycle(_COLOURS), itertools.cycle(_LINES), strict=False)
  for (phase, lines), (colour, line_style) in zip(curves.items(), styles, strict=False):
    points = [(line['step'], scale * line[name]) for line in lines if name in line]
    axes.plot([step for step, _ in points], [value for _, value in points], label=phase,
              color=colour, linestyle=line_style, linewidth=1.3,
              marker='.' if len(points) == 1 else '')
  axes.set_xlabel('step')
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  _clean(axes)


def _clean(axes: Axes) -> None:
  axes.grid(axis='y', color='#e5e5e5')
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


def _figure(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), dpi=_DPI, layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def _save(figure: Figure, path: epath.PathLike) -> None:
  content = io.BytesIO()
  figure.savefig(content, format='png')
  write_atomically(path, content.getvalue())
