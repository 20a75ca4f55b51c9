"""The pictures of the study."""
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdih.report.style import COLOURS, GREY, clean, new_figure, save
from launch.studies.scaling import arithmetic, curves, tables

_TITLES = {'batch': 'batch', 'depth': 'depth of the teacher', 'heads': 'heads',
           'classes': 'classes', 'devices': 'CPU devices on the same cores'}


def draw(results: Mapping[str, Any], folder: pathlib.Path) -> None:
  """Draws a picture for each part of `results`, as PNG and SVG.

  Args:
    results: from `launch.studies.scaling.__main__.read`.
    folder: the folder for the pictures.
  """
  figures: dict[str, Figure] = {}
  if any(name in results for name in _TITLES):
    figures['curves'] = step_times(results)
  if 'compiled' in results:
    figures['memory'] = memory(results['compiled'])
    figures['efficiency'] = efficiency(tables.scaled(results['compiled']))
  for name, figure in figures.items():
    for suffix in ('png', 'svg'):
      save(figure, folder / f'{name}.{suffix}')


def step_times(results: Mapping[str, Any]) -> Figure:
  """Returns a picture of the measured step times, with a panel for each curve in `results`."""
  present = [name for name in _TITLES if name in results]
  figure = new_figure(3.1 * len(present), 3.2)
  panels = figure.subplots(1, len(present), squeeze=False)[0]
  for axes, name in zip(panels, present, strict=True):
    _curve(axes, results[name], name, COLOURS[0], 'flatten')
    if name == 'classes' and 'classes_gap' in results:
      _curve(axes, results['classes_gap'], 'classes_gap', COLOURS[1], 'gap')
      axes.legend(frameon=False)
    _set_scales(axes, name, [row['at'] for row in results[name]['rows']])
  panels[0].set_ylabel('ms per step, measured')
  return figure


def _curve(
    axes: Axes, part: Mapping[str, Any], name: str, colour: str, label: str
) -> None:
  """Draws the medians of a curve, and its quartiles as a band."""
  rows = curves.summary(part['rows'], tables.reference(name, part['rows']))
  at, middle = [row['at'] for row in rows], [row['ms'] for row in rows]
  axes.plot(at, middle, 'o-', color=colour, markersize=4, label=label)
  axes.fill_between(at, [row['low'] for row in rows], [row['high'] for row in rows],
                    color=colour, alpha=0.2, linewidth=0)


def _set_scales(axes: Axes, name: str, at: Sequence[int]) -> None:
  axes.set_xlabel(_TITLES[name])
  if name in ('batch', 'classes', 'devices'):
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  if name in ('batch', 'classes'):
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:,.0f}'))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  else:
    axes.set_ylim(bottom=0)
  axes.set_xticks(at, [f'{x:,}' for x in at], fontsize=8,
                  rotation=45 if name in ('classes', 'depth') else 0)
  clean(axes)


def memory(part: Sequence[Mapping[str, Any]]) -> Figure:
  """Returns a picture of the memory of a chip by its use, with a bar for each compiled case."""
  rows = tables.in_order(part)[::-1]
  figure = new_figure(9, 1.4 + 0.34 * len(rows))
  axes, left = figure.add_subplot(), np.zeros(len(rows))
  for field, colour in zip(rows[0]['memory'], COLOURS, strict=True):
    width = np.array([row['memory'][field] / 2**30 for row in rows])
    axes.barh(range(len(rows)), width, left=left, color=colour, label=field, height=0.7)
    left += width
  axes.set_yticks(range(len(rows)), [
      f'{row["pair"]}, {row["chip"]}, {row["batch"]}{", remat" if row["remat"] else ""}'
      for row in rows])
  axes.set_xlabel('GiB per chip, computed by the compiler; the labels end in the images per chip')
  figure.legend(loc='outside upper center', ncols=len(COLOURS), frameon=False, fontsize=9)
  clean(axes, 'x')
  return figure


def efficiency(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Returns a picture of the modelled efficiency by the number of TPU v4 chips.

  Args:
    rows: from `tables.scaled`.
  """
  rows = [row for row in rows if row['chip'] == 'TPU v4']
  pairs = list(dict.fromkeys(row['pair'] for row in rows))
  figure = new_figure(1 + 4 * max(len(pairs), 1), 3.8)
  panels = figure.subplots(1, max(len(pairs), 1), sharey=True, squeeze=False)[0]
  styles = {'weak': (COLOURS[0], f'{tables.WEAK} images per chip'),
            'strong': (COLOURS[1], f'{tables.STRONG:,} images')}
  for axes, pair in zip(panels, pairs, strict=False):
    for kind, (colour, label) in styles.items():
      points = [row for row in rows if (row['pair'], row['kind']) == (pair, kind)]
      for timing, line in (('overlapped', 'o-'), ('apart', 'o:')):
        axes.plot([row['chips'] for row in points], [100 * row[timing] for row in points], line,
                  color=colour, markersize=4, label=f'{label}, {timing}')
    axes.axhline(100, color=GREY, linewidth=0.8)
    axes.set_xscale('log')
    axes.set_xticks(list(arithmetic.CHIPS['TPU v4'].slices), ['8', '64', '1,024'])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel('chips')
    axes.set_title(f'{pair}, TPU v4', fontsize=10)
    clean(axes)
  panels[0].set_ylim(bottom=0)  # After the last panel is drawn, because the panels share this axis.
  panels[0].set_ylabel('efficiency %, computed')
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False, fontsize=8)
  return figure
