"""Comparisons as text: Markdown, LaTeX, CSV, and what they show in plain sentences."""
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from scipy import special

from kdih.comparison import BASELINES, Gain, Pair, Published, Row, Run

_MISSING = '–'
_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
          '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '±': r'$\pm$',
          '→': r'$\to$', '−': '$-$', '–': '--', '\ufffd': '?',
          '[': '{[}', '*': '{*}',  # Which \\ would take for its own.
          **{char: f'\\{char}' for char in '&%$#_{}'}}
_RUN_NUMBERS = (('test_last', 'top1'), ('test_last', 'loss'), ('test_last', 'agreement'),
                ('test_best_val', 'top1'), ('test_best_val', 'loss'),
                ('test_best_val', 'agreement'), ('val', 'top1'), ('val', 'loss'))
_RUN_FACTS = ('parameters', 'flops', 'steps', 'seconds')


def title(pair: Pair) -> str:
  """What a pair is called: data, teacher, student."""
  return f'{pair.data}: {pair.teacher} → {pair.student}'


def cells(pair: Pair) -> list[list[str]]:
  """The table of a pair, its header first: a method a row, top-1 in percent, rounded.

  A number after '±' is the standard deviation over seeds of a mean, and the standard error of a
  gain, of which `Gain` tells more.
  """
  header = ['method', 'n', 'test top-1 % (last)', 'test top-1 % (best val)',
            *(f'gain over {baseline}' for baseline in BASELINES), 'published']
  return [header, *([
      row.method, str(row.n), _mean(row.mean, row.std), _mean(row.best_mean, row.best_std),
      *(_gain(row.gains.get(baseline), row.n) for baseline in BASELINES),
      ', '.join(map(_published, row.published)) or _MISSING] for row in pair.rows)]


def _mean(mean: float | None, std: float | None) -> str:
  if mean is None:
    return _MISSING
  return f'{mean:.2f}' if std is None else f'{mean:.2f} ± {std:.2f}'


def _gain(gain: Gain | None, seeds: int) -> str:
  """Says over how many seeds it is, where those are not all of the row's."""
  if gain is None:
    return _MISSING
  error = '' if gain.standard_error is None else f' ± {gain.standard_error:.2f}'
  return signed(gain.mean) + error + (f' (n = {gain.n})' if gain.n < seeds else '')


def signed(number: float) -> str:
  """The number with its sign and two places."""
  return f'{number:+.2f}'.replace('-', '−')


def _published(number: Published) -> str:
  return f'{number.top1:.2f} ({number.source}; {number.protocol})'


def markdown(pair: Pair) -> str:
  """The table of a pair in Markdown."""
  header, *rows = [[markdown_escaped(cell) for cell in row] for row in cells(pair)]
  rule = [':--', *('--:' for _ in header[2:]), ':--']
  return '\n'.join(f'| {" | ".join(row)} |' for row in (header, rule, *rows))


def markdown_escaped(text: str) -> str:
  """The text with what Markdown would read as its own written as it is."""
  return ''.join(f'\\{char}' if char in '\\|*<`[' else char for char in text)


def latex(pair: Pair) -> str:
  """The table of a pair in LaTeX; it needs the packages array and booktabs."""
  names, *numbers = cells(pair)
  header = ' & '.join(map(_latex_header, names)) + r' \\'
  rows = [' & '.join(map(_latex_escaped, row)) + r' \\' for row in numbers]
  columns = f'l{"r" * (len(names) - 2)}>{{\\raggedright\\arraybackslash}}p{{32mm}}'
  return '\n'.join([
      r'\begin{table}', r'\centering', f'\\caption{{{_latex_escaped(caption(pair))}}}',
      r'\medskip', r'\footnotesize', r'\setlength{\tabcolsep}{3pt}',
      f'\\begin{{tabular}}{{{columns}}}', r'\toprule', header, r'\midrule', *rows, r'\bottomrule',
      r'\end{tabular}', r'\end{table}'])


def caption(pair: Pair) -> str:
  """What the numbers in the table of a pair are, and the teacher's, published ones too."""
  teacher = ''
  if pair.teacher_top1 is not None:
    numbers = ', '.join(map(_published, pair.teacher_published))
    teacher = f' (teacher {pair.teacher_top1:.2f} %{numbers and f"; published: {numbers}"})'
  return (f'{title(pair)}{teacher}: mean ± standard deviation over n seeds; paired gains in points '
          '± standard error.')


def _latex_header(text: str) -> str:
  """In two lines where it is long, so that the table fits on a page."""
  lines = [_latex_escaped(line) for line in re.split(r' (?=\()|(?<=over) ', text)]
  stacked = r'\\'.join(lines)
  return rf'\shortstack[r]{{{stacked}}}' if lines[1:] else lines[0]


def _latex_escaped(text: str) -> str:
  return ''.join(_LATEX.get(char, char) for char in text)


def csv_of_pairs(pairs: Iterable[Pair]) -> str:
  """All rows of all pairs, unrounded: accuracies in percent, gains in points.

  `seeds` are separated by blanks; `published` holds 'top-1 (source; protocol)', by commas.
  """
  gains = [f'gain_over_{baseline}{part}' for baseline in BASELINES
           for part in ('', '_standard_error', '_n')]
  return _csv(['data', 'teacher', 'student', 'method', 'n', 'seeds', 'top1_last_mean',
               'top1_last_std', 'top1_best_val_mean', 'top1_best_val_std', *gains, 'published',
               'teacher_top1_last', 'teacher_published', 'teacher_parameters', 'teacher_flops',
               'student_parameters', 'student_flops', 'protocol'],
              (_pair_row(pair, row) for pair in pairs for row in pair.rows))


def _pair_row(pair: Pair, row: Row) -> list:
  gains = [row.gains.get(baseline) for baseline in BASELINES]
  costs = [pair.costs[role][cost] for role in ('teacher', 'student')
           for cost in ('parameters', 'flops')]
  return [pair.data, pair.teacher, pair.student, row.method, row.n, ' '.join(map(str, row.seeds)),
          row.mean, row.std, row.best_mean, row.best_std,
          *(value for gain in gains for value in (
              (gain.mean, gain.standard_error, gain.n) if gain else (None, None, None))),
          ', '.join(map(_published, row.published)), pair.teacher_top1,
          ', '.join(map(_published, pair.teacher_published)), *costs, pair.protocol]


def csv_of_runs(runs: Iterable[Run]) -> str:
  """One row a run, unrounded: top-1 and agreement in percent, losses in nats, time in seconds.

  Without a validation split there is no best by validation.
  """
  return _csv(['data', 'teacher', 'student', 'method', 'seed',
               *('_'.join(place) for place in _RUN_NUMBERS), *_RUN_FACTS, 'path', 'protocol'],
              (_run_row(run) for run in runs))


def _run_row(run: Run) -> list:
  return [run.data, run.teacher, run.student, run.method, run.seed,
          *(_number(run.result, *place) for place in _RUN_NUMBERS),
          *(run.result.get(fact) for fact in _RUN_FACTS), run.path, run.protocol]


def _number(result: dict, variables: str, name: str) -> float | None:
  if not result['val'] and variables != 'test_last':
    return None
  number = result[variables].get(name)
  return number if number is None or name == 'loss' else 100 * number


def _csv(header: list[str], rows: Iterable[Sequence[Any]]) -> str:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([header, *rows])
  return text.getvalue()


def findings(pair: Pair) -> list[str]:
  """What the pair shows: for `dih` against `kd` and `kd_matched`, and among variants of a method.

  A sentence or more each; the intervals are those of the paired t-test.
  """
  families: dict[str, list[Row]] = {}
  for row in pair.rows:
    families.setdefault(row.family or row.method, []).append(row)
  return [*_findings_of_dih(pair), *(_choice(rows) for rows in families.values() if rows[1:])]


def _choice(variants: list[Row]) -> str:
  said = f'Of the {len(variants)} variants of {variants[0].method}'
  if any(row.val_mean is None for row in variants):
    return (f'{said} none is chosen: there is no validation split, and the test split must not '
            'choose.')
  best = max(variants, key=lambda row: row.val_mean or 0.0)
  return (f'{said}, {best.method} is best on the validation split ({best.val_mean:.2f} %); it has '
          f'{best.mean:.2f} % on the test split, which chooses nothing.')


def _findings_of_dih(pair: Pair) -> list[str]:
  dih = next((row for row in pair.rows if row.method == 'dih'), None)
  if dih is None:
    return []
  gains = {baseline: dih.gains.get(baseline) for baseline in ('kd', 'kd_matched')}
  return [*(_finding(baseline, gain) for baseline, gain in gains.items()), *_remarks(gains)]


def _finding(baseline: str, gain: Gain | None) -> str:
  said = f'dih against {baseline}: '
  if gain is None:
    return said + 'no seed was run with both.'
  said += f'{signed(gain.mean)} points of test top-1'
  if gain.standard_error is None:
    return f'{said} with n = 1 seed, which has no spread to judge this by: nothing follows from it.'
  exceeds = abs(gain.mean) > 2 * gain.standard_error
  factor, low, high = _interval(gain)
  few = ' for so few seeds' if gain.n <= 3 else ''
  return (f'{said} (standard error {gain.standard_error:.2f}, paired over n = {gain.n} seeds), '
          f'{"more" if exceeds else "not more"} than 2 standard errors from 0. The 95 % confidence '
          f'interval of the paired t-test, {factor:.2f} standard errors to either side{few}, is '
          f'{signed(low)} to {signed(high)}: {_verdict(baseline, low, high)}.')


def _interval(gain: Gain) -> tuple[float, float, float]:
  """Standard errors to either side, and the ends of the 95 % interval; two seeds at least."""
  factor = float(special.stdtrit(gain.n - 1, 0.975))
  reach = factor * (gain.standard_error or 0.0)
  return factor, gain.mean - reach, gain.mean + reach


def _verdict(baseline: str, low: float, high: float) -> str:
  if low > 0:
    return f'dih is better than {baseline} here'
  if high < 0:
    return f'dih is worse than {baseline} here'
  return f'these runs do not tell dih and {baseline} apart'


def _remarks(gains: dict[str, Gain | None]) -> Iterator[str]:
  repeated = {name: _interval(gain) for name, gain in gains.items() if gain and gain.n > 1}
  if {'kd', 'kd_matched'} <= repeated.keys() and (
      repeated['kd'][1] > 0 >= repeated['kd_matched'][1]):
    yield ('kd_matched is KD with the loss scale of dih: the gain over kd is not shown to come '
           'from the heads.')
  if repeated:
    yield ('The spread is that over seeds of the student; there is one teacher, and one test '
           'split.')
