"""Comparisons as Markdown, LaTeX, CSV and sentences."""
import csv
import io
import math
import re

import numpy as np
import pytest

from kdih.config import method_presets
from kdih.report import findings as findings_lib, tables
from kdih.report.aggregate import Gain, Pair, Row, Run
from kdih.report.published import Published
from tests.helpers.made_results import result

PUBLISHED = (Published(61.41, 'a README', 'last epoch'), Published(62.0, 'B & C', 'best'))


def pair(*rows: Row, **fields) -> Pair:
  return Pair(**{
      'data': 'cifar100', 'teacher': 'resnet110', 'student': 'wrn_16_2', 'protocol': '{"x": 1}',
      'teacher_top1': 72.384, 'teacher_published': (), 'heads': None, 'rows': rows,
      'costs': {'teacher': {'parameters': 9, 'flops': 8},
                'student': {'parameters': 7, 'flops': None}}, **fields})


def row(method: str, mean: float, **fields) -> Row:
  """A row over three seeds, of a method that has nothing but a kind."""
  return Row(**{
      'method': method, 'options': {'kind': method}, 'seeds': (1, 2, 3), 'mean': mean, 'std': None,
      'best_mean': None, 'best_std': None, 'gains': {}, 'published': (), **fields})


CE = row('ce', 60.0, std=1.0, best_mean=59.5, best_std=0.25)
DIH = row('dih', 61 + 1 / 3, std=2.345, published=PUBLISHED,
          gains={'ce': Gain(4 / 3, 0.125, 3), 'kd_matched': Gain(-0.5, None, 1)})
ONCE = row('my_|<b>', 50.0, seeds=(7,), best_mean=51.0, gains={'ce': Gain(0.0, None, 1)})


def run(**fields) -> Run:
  return Run(
      path='runs/x', data='digits', teacher='resnet14', student='resnet8', method='ce', seed=3,
      protocol='{}', settings={'kind': 'ce'}, result=result(0.625, agreement=0.5, **fields),
      teacher_result=None, heads_result=None, provenance=())


def test_the_cells_of_a_table():
  header, ce, dih, once = tables.cells(pair(CE, DIH, ONCE))
  assert header == ['method', 'n', 'test top-1 % (last)', 'test top-1 % (best val)',
                    'gain over ce', 'gain over kd_matched', 'published']
  assert ce == ['ce', '3', '60.00 ± 1.00', '59.50 ± 0.25', '–', '–', '–']
  assert dih == ['dih', '3', '61.33 ± 2.35', '–', '+1.33 ± 0.12', '−0.50 (n = 1)',
                 '61.41 (a README; last epoch), 62.00 (B & C; best)']
  assert once[1:5] == ['1', '50.00', '51.00', '+0.00']


def test_tables_leave_out_columns_without_any_value():
  kept = ['method', 'n', 'test top-1 % (last)', 'test top-1 % (best val)', 'gain over ce']
  made = pair(CE, ONCE)
  assert tables.cells(made)[0] == kept
  assert tables.markdown(made).split('\n')[1].count('-:|') == 4  # Numbers stand to the right.
  assert r'\begin{tabular}{lrrrr}' in tables.latex(made)
  assert 'gain_over_kd_matched' in tables.csv_of_pairs([made])


def test_markdown():
  _, rule, *rows = [
      [cell.strip() for cell in re.split(r'(?<!\\)\|', line.removeprefix('|').removesuffix('|'))]
      for line in tables.markdown(pair(CE, ONCE, row('1e3', 1.0, published=PUBLISHED))).split('\n')]
  assert [(cell[0], cell[-1]) for cell in rule] == [(':', '-'), *[('-', ':')] * 4, (':', '-')]
  assert rows == [
      ['ce', '3', '60.00 ± 1.00', '59.50 ± 0.25', '–', '–'],
      [r'my_\|\<b>', '1', '50.00', '51.00', '+0.00', '–'],
      ['1e3', '3', '1.00', '–', '–',  # A name that is a number keeps its letters.
       '61.41 (a README; last epoch), 62.00 (B & C; best)']]


def test_latex_is_a_booktabs_table_with_escaped_names():
  text = re.sub(' +', ' ', tables.latex(pair(CE, DIH, ONCE)))
  lines = text.split('\n')
  top, middle, bottom = (lines.index(rf'\{rule}rule') for rule in ('top', 'mid', 'bottom'))
  assert (middle - top, bottom - middle) == (2, 4)
  assert lines[middle + 1] == r'ce & 3 & 60.00 $\pm$ 1.00 & 59.50 $\pm$ 0.25 & -- & -- & -- \\'
  assert r'$-$0.50 (n = 1) & 61.41 (a README; last epoch), 62.00 (B \& C; best) \\' in text
  assert r'my\_\textbar{}\textless{}b\textgreater{} & 1' in text
  assert r'cifar100: resnet110 $\to$ wrn\_16\_2 (teacher 72.38 \%)' in text
  assert r'\begin{tabular}{lrrrrr>{\raggedright\arraybackslash}p{32mm}}' in text and text.isascii()
  assert (r'method & n & \shortstack[r]{test top-1 \%\\(last)} & '
          r'\shortstack[r]{test top-1 \%\\(best val)} & \shortstack[r]{gain over\\ce} & ') in text
  for environment in ('table', 'tabular'):
    assert text.count(f'\\begin{{{environment}}}') == text.count(f'\\end{{{environment}}}') == 1
  # Every special character that is not a command's is escaped, and no row has an extra column.
  assert not re.search(r'(?<!\\)[_%#]', text)
  assert {line.count(' & ') for line in lines if line.endswith(r'\\')} == {6}


def test_latex_escapes_what_latex_would_read():
  name, = (line.split(' & ')[0] for line in tables.latex(pair(row('a\\b{c}~^$#', 1.0))).split('\n')
           if line.startswith('a'))
  assert name == r'a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}\$\#'


@pytest.mark.parametrize('name, expected', [('[x]', '{[}x]'), ('*', '{*}'), ('\ufffd', '?')])
def test_a_row_cannot_be_taken_for_an_option_of_the_one_before(name, expected):
  text = tables.latex(pair(CE, row(name, 1.0)))
  assert text.split('\n')[-4].split()[:4] == [expected, '&', '3', '&']


def test_a_caption_without_a_teacher():
  assert r'wrn\_16\_2: mean' in tables.latex(pair(CE, teacher_top1=None))


def test_a_caption_holds_the_published_numbers_of_the_teacher():
  assert tables.caption(pair(CE, teacher_published=PUBLISHED)).startswith(
      'cifar100: resnet110 → wrn_16_2 (teacher 72.38 %; published: 61.41 (a README; last epoch), '
      '62.00 (B & C; best)): mean ± standard deviation over n seeds')


def read(text: str) -> list[dict[str, str]]:
  return list(csv.DictReader(io.StringIO(text)))


def test_csv_of_pairs_is_unrounded_and_empty_where_unknown():
  ce, dih, other = read(tables.csv_of_pairs([pair(CE, DIH), pair(ONCE, data='a,"b"')]))
  assert (dih['data'], dih['teacher'], dih['student'], dih['method'], dih['seeds'], dih['n']) == (
      'cifar100', 'resnet110', 'wrn_16_2', 'dih', '1 2 3', '3')
  assert float(dih['top1_last_mean']) == 61 + 1 / 3 and float(dih['top1_last_std']) == 2.345
  assert dih['top1_best_val_mean'] == dih['top1_best_val_std'] == ''
  assert float(dih['gain_over_ce']) == 4 / 3
  assert (dih['gain_over_ce_standard_error'], dih['gain_over_ce_n']) == ('0.125', '3')
  assert (dih['gain_over_kd'], dih['gain_over_kd_standard_error'], dih['gain_over_kd_n']) == (
      '', '', '')
  assert (dih['gain_over_kd_matched'], dih['gain_over_kd_matched_standard_error']) == ('-0.5', '')
  assert (dih['teacher_published'], other['teacher_published']) == ('', '')
  assert dih['published'] == '61.41 (a README; last epoch), 62.00 (B & C; best)'
  assert (ce['teacher_parameters'], ce['teacher_flops'], ce['student_parameters'],
          ce['student_flops'], ce['teacher_top1_last']) == ('9', '8', '7', '', '72.384')
  assert (ce['protocol'], ce['top1_best_val_mean'], ce['published']) == ('{"x": 1}', '59.5', '')
  assert other['data'] == 'a,"b"' and other['top1_last_std'] == ''


def test_csv_of_runs():
  (line,) = read(tables.csv_of_runs([run(flops=99)]))
  assert (line['path'], line['data'], line['method'], line['seed']) == (
      'runs/x', 'digits', 'ce', '3')
  assert float(line['test_last_top1']) == 61.5 and float(line['test_best_val_top1']) == 62.5
  assert float(line['val_top1']) == pytest.approx(64.5) and line['test_last_loss'] == '1.23456'
  assert line['test_last_agreement'] == '50.0'
  assert (line['parameters'], line['flops'], line['seconds']) == ('1234', '99', '61.25')


def test_csv_of_a_run_without_validation_has_no_best():
  (line,) = read(tables.csv_of_runs([run(val=None)]))
  assert float(line['test_last_top1']) == 61.5
  assert {line[name] for name in line if name.startswith(('val', 'test_best_val'))} == {''}
  assert line['flops'] == ''


# Sentences.


def findings(**gains: Gain) -> list[str]:
  return findings_lib.findings(pair(row('dih', 60.0, gains=gains)))


def test_findings_at_three_seeds_go_by_the_t_distribution():
  # t(2 degrees of freedom, 97.5 %) = 4.3027: 1 +- 1.7211 and 2 +- 1.2908.
  kd, matched, *_ = findings(kd=Gain(1.0, 0.4, 3), kd_matched=Gain(2.0, 0.3, 3))
  assert kd == (
      'dih against kd: +1.00 points of test top-1 (standard error 0.40, paired over n = 3 seeds). '
      'The 95 % confidence interval of the paired t-test is −0.72 to +2.72: these runs do not show '
      'a difference between dih and kd.')
  assert matched.endswith('+0.71 to +3.29: dih is better than kd_matched here.')


@pytest.mark.parametrize('mean, error, n, expected', [
    (0.0, 0.0, 2, 'is +0.00 to +0.00: these runs do not show a difference'),
    (-2.0, 0.3, 3, ': dih is worse than kd here'),
    (5.0, 0.5, 2, 'do not show a difference between dih and kd'),
    (0.5, 0.0, 2, 'is +0.50 to +0.50: dih is better than kd here'),
    (5.0, 0.5, 2, 'n = 2 seeds). The 95 % confidence interval of the paired t-test '
     'is −1.35 to +11.35: '),
    (1.0, 0.4, 5, 'n = 5 seeds). The 95 % confidence interval of the paired t-test '
     'is −0.11 to +2.11: '),
])
def test_findings_by_size_and_seeds(mean, error, n, expected):
  assert expected in findings(kd=Gain(mean, error, n))[0]


def test_nothing_follows_from_one_seed():
  kd, matched = findings(kd=Gain(3.0, None, 1))
  assert kd == ('dih against kd: +3.00 points of test top-1, from one seed. One seed has no '
                'spread, and no conclusion can be drawn from it.')
  assert matched == ('dih against kd_matched: no seed was run with both; add kd_matched to '
                     '--methods to compare.')


@pytest.mark.parametrize('matched, said', [
    (Gain(0.1, 0.3, 5), True), (Gain(-1.0, 0.1, 5), True), (Gain(0.9, 0.1, 5), False),
    (Gain(0.1, None, 1), False)])
def test_a_gain_that_the_loss_scale_may_explain_is_not_credited_to_the_heads(matched, said):
  found = findings(kd=Gain(1.0, 0.1, 5), kd_matched=matched)
  assert any('do not show that the gain over kd comes from the heads' in line
             for line in found) == said
  assert found[-1].startswith('All students had one teacher and one test split')


def test_without_dih_there_is_nothing_to_find():
  assert findings_lib.findings(pair(CE)) == []


DIH_TEACHER = dict(kind='dih', members='teacher', reduction='sum', cross_entropy='per_branch',
                   weights='equal', alpha=0.1, temperature=5.0, gain=1.0, standardise=False)
KD_MATCHED = dict(kind='kd', scale='cohort', alpha=0.1, temperature=5.0, gain=1.0,
                  standardise=False)


GAIN = Gain(-0.25, 0.125, 3)


def noise(repeated=(), matched=(), gain: Gain | None = GAIN) -> list[str]:
  """The findings for `dih_teacher` and `kd_matched` with these changes to their options."""
  return findings_lib.findings(pair(
      row('kd_matched', 60.0, options={**KD_MATCHED, **dict(matched)}),
      row('dih_teacher', 60.0, options={**DIH_TEACHER, **dict(repeated)},
          gains={'kd_matched': gain} if gain else {})))


def test_two_runs_of_the_same_loss_measure_the_noise():
  start = ('dih_teacher and kd_matched have the same loss up to rounding: the difference between '
           'their students, −0.25 points of test top-1')
  assert noise() == [f'{start} (standard error 0.12, paired over n = 3 seeds), measures the noise '
                     'between runs that differ only in rounding.']
  assert noise(gain=Gain(-0.25, None, 1)) == [
      f'{start}, from one seed, measures the noise between runs that differ only in rounding.']
  both = {'alpha': 0.5}
  assert len(noise(both, both)) == 1


@pytest.mark.parametrize(('repeated', 'matched'), [
    ({'alpha': 0.5}, {}), ({}, {'temperature': 4.0}), ({}, {'scale': 'one'}),
    ({'members': 'cohort'}, {}), ({'cross_entropy': 'once'}, {}), ({'learning_rate': 0.01}, {})])
def test_other_losses_do_not_measure_the_noise(repeated, matched):
  assert noise(repeated, matched) == []


def test_the_noise_needs_both_methods_and_a_common_seed():
  assert noise(gain=None) == []
  alone = row('dih_teacher', 60.0, options=DIH_TEACHER, gains={'kd_matched': Gain(1.0, 0.1, 3)})
  assert findings_lib.findings(pair(alone)) == []


def test_the_presets_of_dih_teacher_and_kd_matched_have_the_same_loss():
  presets = method_presets.methods('paper')
  assert noise(presets['dih_teacher'], presets['kd_matched']) == noise()


def variant(method: str, mean: float, val: float | None) -> Row:
  options = dict(kind='kd', alpha=mean)  # `alpha` may differ between the variants of a method.
  return row(method, mean, options=options, val_mean=val)


def test_the_validation_split_chooses_among_variants():
  rows = variant('kd', 60.0, 58.0), CE, variant('kd_alpha=5e-1', 61.0, 59.0), variant(
      'kd_lr=1e-2', 99.0, 57.0)
  assert findings_lib.findings(pair(*rows)) == [
      'Of the 3 variants of kd, kd_alpha=5e-1 is best on the validation split (59.00 %). It has '
      '61.00 % on the test split, which was not used to choose it.']
  assert findings_lib.findings(pair(*rows[:3], variant('kd_lr=1e-2', 99.0, None))) == [
      'Of the 3 variants of kd none is chosen, because there is no validation split and the test '
      'split must not choose.']


@pytest.mark.slow
def test_the_interval_covers_the_truth_19_times_in_20():
  """Simulated: gains of 3 seeds around a true gain of 0.5 points."""
  drawn = np.random.default_rng(0).normal(0.5, 1.3, (4000, 3))
  told = [findings(kd=Gain(float(mean), float(error), 3))[0] for mean, error in zip(
      drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(3), strict=True)]
  ends = [re.search(r'is (\S+) to (\S+): ', line).groups() for line in told]
  inside = [float(low.replace('−', '-')) <= 0.5 <= float(high.replace('−', '-'))
            for low, high in ends]
  assert np.mean(inside) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors.
