"""The style that all pictures share: figures, axes, colours, labels, and files."""
import io
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdih import errors
from kdih.runtime.files import write_atomically

GREY = '#666666'
TEACHER, STUDENT = '#0072b2', '#d55e00'
# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#000000', '#e69f00', '#56b4e9')
MARKERS = 'sD^vPX*p'

DPI = 150
# Letters as outlines look the same with any fonts; the salt makes element ids reproducible.
_SVG: dict[Any, str] = {'svg.fonttype': 'path', 'svg.hashsalt': 'kdih'}


def new_figure(width: float, height: float) -> Figure:
  """Returns an empty white figure, `width` x `height` inches, whose layout cuts nothing off."""
  figure = Figure(figsize=(width, height), dpi=DPI, layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def clean(axes: Axes, grid: Literal['x', 'y'] = 'y') -> None:
  """Removes the top and right spine, and adds a pale grid along the axis `grid`."""
  axes.grid(axis=grid, color='#e5e5e5')
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


def accuracy_limits(percent: Sequence[float]) -> tuple[float, float]:
  """Returns limits of an axis for these accuracies, with at least one point of margin."""
  low, high = min(percent), max(percent)
  margin = max(0.12 * (high - low), 1)  # Small differences must look small.
  return low - margin, high + margin


def legend_columns(count: int) -> int:
  """Returns the number of columns with which a legend of `count` names is as high as a panel."""
  return 1 + count // 18


def label_point(
    axes: Axes, at: float, value: float, offset: tuple[int, int], side: str
) -> None:
  """Writes the value beside a point, `offset` typographic points away."""
  axes.annotate(f'{value:.1f}', (at, value), xytext=offset, textcoords='offset points',
                ha=side, fontsize=9, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5})


def shown(name: str) -> str:
  """Returns a name for a picture: in one line, shortened if it is long, and never a formula."""
  name = errors.printable(name)
  cut = name if len(name) <= 26 else f'{name[:12]}…{name[-13:]}'
  return cut.replace('$', r'\$')


def save(figure: Figure, path: epath.PathLike) -> None:
  """Writes a figure atomically, as PNG or SVG according to the suffix of `path`.

  The same figure always gives the same bytes.
  """
  kind = pathlib.PurePath(path).suffix.removeprefix('.')
  content = io.BytesIO()
  with matplotlib.rc_context(_SVG):
    figure.savefig(content, format=kind, metadata={'Date': None} if kind == 'svg' else None)
  write_atomically(path, content.getvalue())
