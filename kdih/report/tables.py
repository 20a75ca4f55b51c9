"""Comparisons as text: Markdown, LaTeX and CSV."""
import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tabulate

from kdih import errors
from kdih.report.aggregate import BASELINES, Gain, Pair, Run
from kdih.report.published import Published

_MISSING = '–'
_PUBLISHED = 'published'  # The title of the only column of sentences.
_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
          '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '±': r'$\pm$',
          '→': r'$\to$', '−': '$-$', '–': '--', '\ufffd': '?',
          '[': '{[}', '*': '{*}',  # After \\, LaTeX reads these as options.
          **{char: f'\\{char}' for char in '&%$#_{}'}}
# As tabulate's `latex_booktabs`, for cells that are LaTeX already.
_BOOKTABS = tabulate.TableFormat(
    lineabove=tabulate.Line(r'\toprule', '', '', ''),
    linebelowheader=tabulate.Line(r'\midrule', '', '', ''), linebetweenrows=None,
    linebelow=tabulate.Line(r'\bottomrule', '', '', ''),
    headerrow=tabulate.DataRow('', ' & ', r' \\'), datarow=tabulate.DataRow('', ' & ', r' \\'),
    padding=0, with_header_hide=None)


def title(pair: Pair) -> str:
  """Returns the title of a pair: data, teacher, student."""
  return f'{pair.data}: {pair.teacher} → {pair.student}'


def cells(pair: Pair) -> list[list[str]]:
  """Returns the rows of a pair's table, the header first, with a row for each method.

  Top-1 is in percent, with its standard deviation over the seeds after '±'; gains are in points,
  with their standard error after '±'. Columns of gains and published numbers that no method has a
  value for are left out.
  """
  header = ['method', 'n', 'test top-1 % (last)', 'test top-1 % (best val)',
            *(f'gain over {baseline}' for baseline in BASELINES), _PUBLISHED]
  rows = [[
      row.method, str(row.n), _mean(row.mean, row.std), _mean(row.best_mean, row.best_std),
      *(_gain(row.gains.get(baseline), row.n) for baseline in BASELINES),
      ', '.join(map(_published, row.published)) or _MISSING] for row in pair.rows]
  kept = [at for at, title in enumerate(header)
          if not title.startswith(('gain over ', _PUBLISHED))
          or any(row[at] != _MISSING for row in rows)]
  return [[row[at] for at in kept] for row in (header, *rows)]


def _mean(mean: float | None, std: float | None) -> str:
  if mean is None:
    return _MISSING
  return f'{mean:.2f}' if std is None else f'{mean:.2f} ± {std:.2f}'


def _gain(gain: Gain | None, seeds: int) -> str:
  """Returns a gain as text; with the number of its seeds if that is smaller than `seeds`."""
  if gain is None:
    return _MISSING
  error = '' if gain.standard_error is None else f' ± {gain.standard_error:.2f}'
  return signed(gain.mean) + error + (f' (n = {gain.n})' if gain.n < seeds else '')


def signed(number: float) -> str:
  """Returns the number with its sign and two places."""
  return f'{number:+.2f}'.replace('-', '−')


def _published(number: Published) -> str:
  return f'{number.top1:.2f} ({number.source}; {number.protocol})'


def markdown(pair: Pair) -> str:
  """Returns the table of a pair in Markdown."""
  header, *rows = [[markdown_escaped(cell) for cell in row] for row in cells(pair)]
  return tabulate.tabulate(rows, header, tablefmt='pipe', disable_numparse=True,
                           colalign=_alignment(header))


def _alignment(header: list[str]) -> list[str]:
  return ['left', *('left' if title == _PUBLISHED else 'right' for title in header[1:])]


def markdown_escaped(text: str) -> str:
  """Returns the text in one line that can be printed, with Markdown's special characters escaped.
  """
  return ''.join(
      f'\\{char}' if char in '\\|*<`[' else char for char in errors.printable(text))


def latex(pair: Pair) -> str:
  """Returns the table of a pair in LaTeX, which needs the packages array and booktabs."""
  header, *rows = cells(pair)
  body = tabulate.tabulate(
      [[_latex_escaped(cell) for cell in row] for row in rows], [*map(_latex_header, header)],
      tablefmt=_BOOKTABS, disable_numparse=True, colalign=_alignment(header))
  columns = 'l' + ''.join(r'>{\raggedright\arraybackslash}p{32mm}' if title == _PUBLISHED else 'r'
                          for title in header[1:])
  return '\n'.join([
      r'\begin{table}', r'\centering', f'\\caption{{{_latex_escaped(caption(pair))}}}',
      r'\medskip', r'\footnotesize', r'\setlength{\tabcolsep}{3pt}',
      f'\\begin{{tabular}}{{{columns}}}', body, r'\end{tabular}', r'\end{table}'])


def caption(pair: Pair) -> str:
  """Returns the caption of a pair's table, with the accuracies of the teacher."""
  teacher = ''
  if pair.teacher_top1 is not None:
    numbers = ', '.join(map(_published, pair.teacher_published))
    teacher = f' (teacher {pair.teacher_top1:.2f} %{numbers and f"; published: {numbers}"})'
  shared = ''
  if pair.shares_batches:
    shared = (' All seeds saw the same batches (config.data.order_seed): ± is the spread over '
              'initialisations alone, which is smaller than the spread of independent runs.')
  return (f'{title(pair)}{teacher}: mean ± standard deviation over n seeds; paired gains in points '
          f'± standard error.{shared}')


def _latex_header(text: str) -> str:
  """Returns a title in LaTeX, in two lines if it is long, so that the table fits on a page."""
  lines = [_latex_escaped(line) for line in re.split(r' (?=\()|(?<=over) ', text)]
  stacked = r'\\'.join(lines)
  return rf'\shortstack[r]{{{stacked}}}' if lines[1:] else lines[0]


def _latex_escaped(text: str) -> str:
  return ''.join(_LATEX.get(char, char) for char in text)


def csv_of_pairs(pairs: Iterable[Pair]) -> str:
  """Returns the rows of all pairs as CSV, not rounded: accuracies in percent, gains in points.

  The numbers in `seeds` are separated by blanks, and the numbers in `published`, written as
  'top-1 (source; protocol)', by commas.
  """
  header = ['data', 'teacher', 'student', 'method', 'n', 'seeds',
            'top1_last_mean', 'top1_last_std', 'top1_best_val_mean', 'top1_best_val_std',
            *(f'gain_over_{baseline}{part}' for baseline in BASELINES
              for part in ('', '_standard_error', '_n')),
            'published', 'teacher_top1_last', 'teacher_published',
            'teacher_parameters', 'teacher_flops', 'student_parameters', 'student_flops',
            'protocol']
  rows = []
  for pair in pairs:
    for row in pair.rows:
      gains: list[float | None] = []
      for baseline in BASELINES:
        gain = row.gains.get(baseline)
        gains += (gain.mean, gain.standard_error, gain.n) if gain else (None, None, None)
      rows.append([
          pair.data, pair.teacher, pair.student, row.method, row.n, ' '.join(map(str, row.seeds)),
          row.mean, row.std, row.best_mean, row.best_std,
          *gains,
          ', '.join(map(_published, row.published)), pair.teacher_top1,
          ', '.join(map(_published, pair.teacher_published)),
          *(pair.costs[role][cost] for role in ('teacher', 'student')
            for cost in ('parameters', 'flops')),
          pair.protocol])
  return _csv(header, rows)


def csv_of_runs(runs: Iterable[Run]) -> str:
  """Returns a row for each run as CSV, not rounded.

  Top-1 and agreement are in percent, losses in nats, times in seconds. The columns that need a
  validation split are empty if there is none.
  """
  numbers = (('test_last', 'top1'), ('test_last', 'loss'), ('test_last', 'agreement'),
             ('test_best_val', 'top1'), ('test_best_val', 'loss'), ('test_best_val', 'agreement'),
             ('val', 'top1'), ('val', 'loss'))
  facts = ('parameters', 'flops', 'steps', 'seconds')
  header = ['data', 'teacher', 'student', 'method', 'seed',
            *('_'.join(place) for place in numbers), *facts, 'path', 'protocol']
  rows = ([run.data, run.teacher, run.student, run.method, run.seed,
           *(_number(run.result, *place) for place in numbers),
           *(run.result.get(fact) for fact in facts), run.path, run.protocol] for run in runs)
  return _csv(header, rows)


def _number(result: dict, variables: str, name: str) -> float | None:
  if not result['val'] and variables != 'test_last':
    return None
  number = result[variables].get(name)
  return number if number is None or name == 'loss' else 100 * number


def _csv(header: list[str], rows: Iterable[Sequence[Any]]) -> str:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([header, *rows])
  return text.getvalue()
