"""What a comparison shows, in sentences."""
import scipy

from kdih.report import tables
from kdih.report.aggregate import Gain, Pair, Row

# With these options, and equal values of the options in `_SHARED`, `dih_teacher` and `kd_matched`
# have the same loss.
_DIH_TEACHER = dict(kind='dih', members='teacher', reduction='sum', cross_entropy='per_branch',
                    weights='equal')
_KD_MATCHED = dict(kind='kd', scale='cohort')
_SHARED = ('alpha', 'temperature', 'gain', 'standardise', 'learning_rate')


def findings(pair: Pair) -> list[str]:
  """Returns what the results of a pair show, a paragraph each.

  The paragraphs compare `dih` with `kd` and with `kd_matched`, state the noise between runs of the
  same loss, and name the best variant of each method. Intervals are those of the paired t-test.
  """
  rows = {row.method: row for row in pair.rows}
  families: dict[str, list[Row]] = {}
  for row in pair.rows:
    families.setdefault(row.family, []).append(row)
  return [*_dih_findings(rows), *_noise(rows),
          *(_best_variant(variants) for variants in families.values() if variants[1:])]


def _dih_findings(rows: dict[str, Row]) -> list[str]:
  if 'dih' not in rows:
    return []
  gains = {baseline: rows['dih'].gains.get(baseline) for baseline in ('kd', 'kd_matched')}
  sentences = [_comparison(baseline, gain) for baseline, gain in gains.items()]
  intervals = {name: _interval(gain) for name, gain in gains.items() if gain and gain.n > 1}
  if {'kd', 'kd_matched'} <= intervals.keys() and (
      intervals['kd'][0] > 0 >= intervals['kd_matched'][0]):
    sentences.append('kd_matched is KD with the loss scale of dih: these runs do not show that the '
                     'gain over kd comes from the heads.')
  if intervals:
    sentences.append('All students had one teacher and one test split: the spread over seeds does '
                     'not include the spread over teachers or test images.')
  return sentences


def _comparison(baseline: str, gain: Gain | None) -> str:
  """Returns how `dih` compares with a baseline, with an interval if there are several seeds."""
  if gain is None:
    return (f'dih against {baseline}: no seed was run with both; add {baseline} to --methods to '
            'compare.')
  difference = f'dih against {baseline}: {tables.signed(gain.mean)} points of test top-1'
  if gain.standard_error is None:
    return (f'{difference}, from one seed. One seed has no spread, and no conclusion can be drawn '
            'from it.')
  low, high = _interval(gain)
  if low > 0:
    verdict = f'dih is better than {baseline} here'
  elif high < 0:
    verdict = f'dih is worse than {baseline} here'
  else:
    verdict = f'these runs do not show a difference between dih and {baseline}'
  return (f'{difference} ({_precision(gain)}). The 95 % confidence interval of the paired t-test '
          f'is {tables.signed(low)} to {tables.signed(high)}: {verdict}.')


def _precision(gain: Gain) -> str:
  return f'standard error {gain.standard_error:.2f}, paired over n = {gain.n} seeds'


def _interval(gain: Gain) -> tuple[float, float]:
  """Returns the ends of the 95 % confidence interval of a gain over two seeds or more."""
  # Not with `scale`: scipy returns nan for a standard error of 0.
  half = float(scipy.stats.t.interval(0.95, gain.n - 1)[1]) * (gain.standard_error or 0.0)
  return gain.mean - half, gain.mean + half


def _noise(rows: dict[str, Row]) -> list[str]:
  """Returns the difference between `dih_teacher` and `kd_matched`, which have the same loss."""
  if not {'dih_teacher', 'kd_matched'} <= rows.keys():
    return []
  gain = rows['dih_teacher'].gains.get('kd_matched')
  repeated, matched = rows['dih_teacher'].options, rows['kd_matched'].options
  if (gain is None or not _DIH_TEACHER.items() <= repeated.items()
      or not _KD_MATCHED.items() <= matched.items()
      or any(repeated.get(name) != matched.get(name) for name in _SHARED)):
    return []
  precision = f' ({_precision(gain)})' if gain.n > 1 else ', from one seed'
  return ['dih_teacher and kd_matched have the same loss up to rounding: the difference between '
          f'their students, {tables.signed(gain.mean)} points of test top-1{precision}, measures '
          'the noise between runs that differ only in rounding.']


def _best_variant(variants: list[Row]) -> str:
  start = f'Of the {len(variants)} variants of {variants[0].method}'
  if any(row.val_mean is None for row in variants):
    return (f'{start} none is chosen, because there is no validation split and the test split must '
            'not choose.')
  best = max(variants, key=lambda row: row.val_mean or 0.0)
  return (f'{start}, {best.method} is best on the validation split ({best.val_mean:.2f} %). It has '
          f'{best.mean:.2f} % on the test split, which was not used to choose it.')
