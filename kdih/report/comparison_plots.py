"""The pictures of a comparison. Each is saved as PNG and as SVG."""
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdih.cohort.members import MEAN
from kdih.report import cost_plots, tables
from kdih.report.aggregate import BASELINES, Pair
from kdih.report.style import (
  GREY,
  STUDENT,
  TEACHER,
  accuracy_limits,
  clean,
  new_figure,
  save,
  shown,
)


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture that was drawn.

  Attributes:
    name: name of the files `<name>.png` and `<name>.svg`.
    section: the heading under which the picture is shown; one of `headings`, or a further one.
    title: the title.
    text: the caption.
  """

  name: str
  section: str
  title: str
  text: str


def headings(pairs: Sequence[Pair]) -> list[str]:
  """Returns a heading for each pair, with a number if only the protocol of pairs differs."""
  names = [tables.title(pair) for pair in pairs]
  return [f'{name} (protocol {names[:at].count(name) + 1} of {names.count(name)})'
          if names.count(name) > 1 else name for at, name in enumerate(names)]


def draw(pairs: Sequence[Pair], folder: epath.PathLike) -> list[Picture]:
  """Draws all pictures of a comparison into `folder`, each as PNG and SVG, and lists them."""
  pictures: list[Picture] = []
  for picture, figure in _figures(pairs):
    # Some file systems do not distinguish upper from lower case.
    taken = {other.name.lower() for other in pictures}
    endings = itertools.chain([''], (f'-{number}' for number in itertools.count(2)))
    name = next(n for end in endings if (n := picture.name + end).lower() not in taken)
    picture = dataclasses.replace(picture, name=name)
    for suffix in ('png', 'svg'):
      save(figure, epath.Path(folder) / f'{picture.name}.{suffix}')
    pictures.append(picture)
  return pictures


def _figures(pairs: Sequence[Pair]) -> Iterator[tuple[Picture, Figure]]:
  for data in dict.fromkeys(pair.data for pair in pairs):
    if figure := cost_plots.accuracy_by_cost([pair for pair in pairs if pair.data == data]):
      yield Picture(_file('cost', data), f'{data}: all models', 'Accuracy and cost',
                    'Mean test top-1 of teachers and students against parameters and FLOPs. The '
                    'methods of a student have one cost, marked by a thin line, and are drawn side '
                    'by side around it.'), figure
  for pair, heading in zip(pairs, headings(pairs), strict=True):
    if any(row.gains for row in pair.rows):
      yield Picture(_file('gains', pair.data, pair.teacher, pair.student), heading,
                    'Gain of every method', _gains_text(pair)), gains(pair)
  yield from _cohort_figures(pairs)


def _cohort_figures(pairs: Sequence[Pair]) -> Iterator[tuple[Picture, Figure]]:
  """Yields the pictures of each cohort once, even if it taught several students."""
  drawn: list[Any] = []
  for pair in pairs:
    if pair.heads is None or pair.heads in drawn:
      continue
    drawn.append(pair.heads)
    section = f'{pair.data}: the cohort of {pair.teacher}'
    analysis = pair.heads.get('analysis') or {}
    if analysis.get('members'):
      yield Picture(_file('members', pair.data, pair.teacher), section,
                    'Accuracy, entropy and calibration by depth',
                    f'Members from shallow to deep: {", ".join(_members(pair.heads))}. ECE is '
                    'the expected calibration error.'), members_by_depth(pair.heads)
    if analysis.get('agreement'):
      yield Picture(_file('agreement', pair.data, pair.teacher), section,
                    'Agreement of the members', 'Percentage of the test images that two members '
                    'assign to the same class.'), agreement(**analysis['agreement'])
    if len(analysis.get('without') or {}) > 1:
      yield Picture(_file('without', pair.data, pair.teacher), section,
                    'The cohort without one of its members', 'Test top-1 of the mean of all '
                    'members but one.'), without(analysis['without'])


def _file(*parts: str) -> str:
  """Returns a file name that is valid on every file system, whatever the parts contain."""
  longest = 48  # Letters of a part; most file systems allow names of 255 letters.
  return '_'.join(re.sub(r'[^\w.-]+', '-', part, flags=re.ASCII)[-longest:] for part in parts)


def _gains_text(pair: Pair) -> str:
  largest = []
  for baseline in _baselines(pair):
    row = max((row for row in pair.rows if baseline in row.gains),
              key=lambda row: row.gains[baseline].mean)
    gain = row.gains[baseline].mean
    largest.append(f'{row.method} has the largest gain over {baseline}, {tables.signed(gain)}'
                   if gain > 0 else
                   f'no method gains over {baseline}: {row.method} loses least, '
                   f'{tables.signed(gain)}')
  single = any(gain.standard_error is None for row in pair.rows for gain in row.gains.values())
  return ('Gains in points of test top-1, with their standard errors'
          f'{" (hollow points: one seed, without an error)" if single else ""}; '
          f'{"; ".join(largest)}.')


def _baselines(pair: Pair) -> list[str]:
  return [name for name in BASELINES if any(name in row.gains for row in pair.rows)]


def gains(pair: Pair) -> Figure:
  """Returns a picture of the gain of every method over each baseline, with its standard error.

  The most accurate method is on top. A hollow point shows the gain of one seed, which has no error.
  """
  baselines = _baselines(pair)
  rows = sorted((row for row in pair.rows if row.gains), key=lambda row: row.mean)
  figure = new_figure(1.6 + 2.9 * len(baselines), 1.0 + 0.27 * len(rows))
  panels = figure.subplots(1, len(baselines), sharey=True, squeeze=False)[0]
  for axes, baseline in zip(panels, baselines, strict=True):
    axes.axvline(0, color=GREY, linewidth=1)
    for at, row in enumerate(rows):
      if gain := row.gains.get(baseline):
        axes.errorbar(gain.mean, at, xerr=gain.standard_error, fmt='o', color=TEACHER,
                      markersize=5, capsize=3,
                      markerfacecolor='white' if gain.standard_error is None else TEACHER)
        _write_beside(axes, at, gain.mean)
    axes.set_xlabel(f'gain over {baseline}, points')
    axes.xaxis.set_major_formatter(lambda x, _: f'{x:+g}'.replace('-', '−') if x else '0')
    axes.locator_params(axis='x', nbins=5)
    clean(axes, 'x')
  panels[0].set_yticks(range(len(rows)), [shown(row.method) for row in rows])
  panels[0].set_ylim(-0.6, len(rows) - 0.4)
  return figure


def _write_beside(axes: Axes, at: int, number: float) -> None:
  axes.text(1.02, at, tables.signed(number), transform=axes.get_yaxis_transform(),
            va='center_baseline', fontsize=9, color=GREY)


def _members(heads: dict) -> list[str]:
  """Returns the names of the members from shallow to deep, without their mean."""
  return [name for name in heads['members'] if name != MEAN]


def members_by_depth(heads: dict) -> Figure:
  """Returns a picture of the members' accuracy, entropy and calibration, with a panel for each.

  The values are written above the panels. A dashed line shows the value of the members' mean.

  Args:
    heads: `result.json` of the heads; it must have an `analysis`.
  """
  accuracies = {name: 100 * member['test_best_val']['top1']
                for name, member in heads['members'].items()}
  analysed = heads['analysis']['members']
  panels = {'test top-1 %': (accuracies, '{:.1f}'),
            'entropy, nats': ({n: m['entropy'] for n, m in analysed.items()}, '{:.2f}'),
            'ECE, points': ({n: 100 * m['ece'] for n, m in analysed.items()}, '{:.1f}')}
  names = _members(heads)
  if len(names) <= 6:  # Panels with few bars fit side by side.
    figure = new_figure(3 * max(1.2 + 0.55 * len(names), 2.6), 3.4)
    grid = figure.subplots(1, 3)
  else:
    figure = new_figure(max(1.6 + 0.6 * len(names), 6), 8)
    grid = figure.subplots(3, 1)
  for axes, (title, (values, form)) in zip(grid.flat, panels.items(), strict=True):
    heights = [values[name] for name in names]
    mean = values.get(MEAN)
    for at, height in enumerate(heights):
      axes.text(at, 1.02, form.format(height), transform=axes.get_xaxis_transform(), ha='center',
                fontsize=9)
    axes.set_ylabel(title)
    if mean is not None:
      axes.axhline(mean, color=GREY, linestyle='--', linewidth=1, zorder=0.9)
      axes.set_title(f'- - mean {form.format(mean)}', loc='right', fontsize=9, color=GREY, pad=18)
    axes.set_xticks(range(len(names)), [shown(name) for name in names], rotation=40, ha='right',
                    rotation_mode='anchor')
    axes.set_xlim(-0.6, len(names) - 0.4)
    if values is accuracies:  # Points, because the axis does not begin at zero.
      axes.plot(range(len(names)), heights, 'o-', color=TEACHER)
      axes.set_ylim(accuracy_limits([*heights, *([] if mean is None else [mean])]))
    else:
      axes.bar(range(len(names)), heights, width=0.62, color=TEACHER)
      axes.set_ylim(bottom=0)  # These numbers cannot be negative.
    clean(axes)
  return figure


def agreement(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> Figure:
  """Returns a picture of how often each two members predict the same class, in percent.

  Args:
    names: names of the members.
    matrix: fractions of the images, [members, members].
  """
  fractions = np.asarray(matrix)
  size = 1.5 + 0.48 * len(names)
  figure = new_figure(size, size)
  axes = figure.add_subplot()
  axes.imshow(fractions, cmap='Blues', vmin=0, vmax=1)
  for (row, column), fraction in np.ndenumerate(fractions):
    axes.text(column, row, f'{100 * fraction:.0f}', ha='center', va='center', fontsize=9,
              color='white' if fraction > 0.68 else 'black')
  labels = [shown(name) for name in names]
  axes.set_xticks(range(len(names)), labels, rotation=40, ha='right', rotation_mode='anchor')
  axes.set_yticks(range(len(names)), labels)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  return figure


def without(top1: dict[str, float]) -> Figure:
  """Returns a picture of the test top-1 of the cohort's mean when one member is left out.

  Args:
    top1: {member that is left out: fraction}; 'none' has the fraction for the whole cohort.
  """
  everyone = 100 * top1['none']
  others = {name: 100 * fraction for name, fraction in top1.items() if name != 'none'}
  figure = new_figure(5.6, 1.2 + 0.3 * len(others))
  axes = figure.add_subplot()
  axes.axvline(everyone, color=GREY, linewidth=1)
  for at, value in enumerate(others.values()):
    axes.plot([everyone, value], [at, at], color=STUDENT, linewidth=1.5)
    axes.plot(value, at, 'o', color=STUDENT)
    _write_beside(axes, at, value - everyone)
  axes.set_yticks(range(len(others)), [f'without {shown(name)}' for name in others])
  axes.set_ylim(len(others) - 0.4, -0.6)  # Shallow members on top.
  axes.set_xlabel('test top-1 % of the cohort\'s mean')
  axes.locator_params(axis='x', nbins=6)
  axes.set_title(f'all members: {everyone:.2f}', loc='left', fontsize=10, color=GREY)
  clean(axes, 'x')
  return figure
