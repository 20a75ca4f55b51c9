"""What a comparison shows, in plain sentences."""
from scipy import special

from kdih.report import tables
from kdih.report.aggregate import Gain, Pair, Row


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
  said = [_finding(baseline, gain) for baseline, gain in gains.items()]
  repeated = {name: _interval(gain) for name, gain in gains.items() if gain and gain.n > 1}
  if {'kd', 'kd_matched'} <= repeated.keys() and (
      repeated['kd'][1] > 0 >= repeated['kd_matched'][1]):
    said.append('kd_matched is KD with the loss scale of dih: the gain over kd is not shown to '
                'come from the heads.')
  if repeated:
    said.append('The spread is that over seeds of the student; there is one teacher, and one test '
                'split.')
  return said


def _finding(baseline: str, gain: Gain | None) -> str:
  said = f'dih against {baseline}: '
  if gain is None:
    return said + 'no seed was run with both.'
  said += f'{tables.signed(gain.mean)} points of test top-1'
  if gain.standard_error is None:
    return f'{said} with n = 1 seed, which has no spread to judge this by: nothing follows from it.'
  exceeds = abs(gain.mean) > 2 * gain.standard_error
  factor, low, high = _interval(gain)
  few = ' for so few seeds' if gain.n <= 3 else ''
  if low > 0:
    verdict = f'dih is better than {baseline} here'
  elif high < 0:
    verdict = f'dih is worse than {baseline} here'
  else:
    verdict = f'these runs do not tell dih and {baseline} apart'
  return (f'{said} (standard error {gain.standard_error:.2f}, paired over n = {gain.n} seeds), '
          f'{"more" if exceeds else "not more"} than 2 standard errors from 0. The 95 % confidence '
          f'interval of the paired t-test, {factor:.2f} standard errors to either side{few}, is '
          f'{tables.signed(low)} to {tables.signed(high)}: {verdict}.')


def _interval(gain: Gain) -> tuple[float, float, float]:
  """Standard errors to either side, and the ends of the 95 % interval; two seeds at least."""
  factor = float(special.stdtrit(gain.n - 1, 0.975))
  reach = factor * (gain.standard_error or 0.0)
  return factor, gain.mean - reach, gain.mean + reach
