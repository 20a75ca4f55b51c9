"""What all pictures share: the figure, the look of its axes, colours, and how it is saved."""
import io
import pathlib
from typing import Any, Literal

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdih.runtime.files import write_atomically

GREY = '#666666'
TEACHER, STUDENT = '#0072b2', '#d55e00'
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#000000', '#e69f00', '#56b4e9')
MARKERS = 'sD^vPX*p'

DPI = 150
# Letters as outlines look alike everywhere; the salt makes ids the same from run to run.
_SVG: dict[Any, str] = {'svg.fonttype': 'path', 'svg.hashsalt': 'kdih'}


def new_figure(width: float, height: float) -> Figure:
  """An empty white figure of so many inches, laid out so that nothing is cut off."""
  figure = Figure(figsize=(width, height), dpi=DPI, layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def clean(axes: Axes, grid: Literal['x', 'y'] = 'y') -> None:
  """Leaves two spines and a pale grid along the axis `grid`."""
  axes.grid(axis=grid, color='#e5e5e5')
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


def legend_columns(count: int) -> int:
  """Returns in how many columns a legend of so many names is no higher than a row of panels."""
  return 1 + count // 18


def label_point(
    axes: Axes, at: float, value: float, offset: tuple[int, int], side: str
) -> None:
  """Writes the number beside a point, so many typographic points away from it."""
  axes.annotate(f'{value:.1f}', (at, value), xytext=offset, textcoords='offset points',
                ha=side, fontsize=9, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5})


def shown(name: str) -> str:
  """A name as pictures write it: without the middle of one that is too long, and no formula."""
  cut = name if len(name) <= 26 else f'{name[:12]}…{name[-13:]}'
  return cut.replace('$', r'\$')


def save(figure: Figure, path: epath.PathLike) -> None:
  """Writes the picture, atomically, as PNG or SVG by the suffix of `path`.

  The same figure gives the same bytes.
  """
  kind = pathlib.PurePath(path).suffix.removeprefix('.')
  content = io.BytesIO()
  with matplotlib.rc_context(_SVG):
    figure.savefig(content, format=kind, metadata={'Date': None} if kind == 'svg' else None)
  write_atomically(path, content.getvalue())
