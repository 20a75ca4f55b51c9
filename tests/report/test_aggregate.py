"""Runs of several seeds averaged: means, paired gains, published numbers, and problems."""
import dataclasses
import json
import math

import pytest

from kdih.report import published, tables
from kdih.report.aggregate import Run, compare
from tests.helpers.made_results import heads, result

KD = dict(kind='kd', alpha=0.9, temperature=4.0, scale='one', gain=1.0, standardise=False)
OPTIONS = {'ce': dict(kind='ce'), 'kd': KD, 'kd_matched': {**KD, 'scale': 'cohort'},
           'dih': dict(kind='dih', alpha=0.1)}


def run(method, seed, last, best=None, *, options=None, protocol='{}', data='cifar100',
        teacher='resnet110', student='resnet8', **others) -> Run:
  """A run with these top-1, in percent, after the last step and of the best by validation."""
  content = result(0.5, seed=seed, method=options or OPTIONS.get(method, dict(kind=method)))
  content['test_last'] = {'top1': last / 100}
  content['test_best_val'] = {'top1': (best or last) / 100}
  return Run(**{'path': f'runs/{method}/{seed}', 'teacher_result': None, 'heads_result': None,
                'data': data, 'teacher': teacher, 'student': student, 'method': method,
                'seed': seed, 'protocol': protocol, 'settings': content['method'],
                'result': content, 'provenance': (), **others})


def made_of(found: Run, **identity) -> Run:
  return dataclasses.replace(found, result={**found.result, 'identity': identity})


def three_seeds() -> list[Run]:
  """dih 70, 72, 74; kd 69, 70, 74; ce 66, 66, 69; by validation dih 1, 2 and 3 lower."""
  return [*(run('dih', seed, last, last - seed) for seed, last in ((1, 70), (2, 72), (3, 74))),
          *(run('kd', seed, last) for seed, last in ((3, 74), (1, 69), (2, 70))),
          *(run('ce', seed, last) for seed, last in ((1, 66), (2, 66), (3, 69)))]


def rows(runs, number=0):
  return {row.method: row for row in compare(runs)[0][number].rows}


def test_mean_and_deviation_over_three_seeds():
  pairs, problems = compare(three_seeds())
  assert len(pairs) == 1 and problems == []
  found = rows(three_seeds())
  dih, kd = found['dih'], found['kd']
  assert dih.seeds == kd.seeds == (1, 2, 3) and dih.n == 3
  assert (dih.mean, dih.std) == (pytest.approx(72), pytest.approx(2))
  assert (dih.best_mean, dih.best_std) == (pytest.approx(70), pytest.approx(1))  # 69, 70, 71.
  assert (kd.mean, kd.std) == (pytest.approx(71), pytest.approx(math.sqrt(7)))


def test_variants_are_known_by_their_settings_and_validated():
  runs = [run('kd', 1, 70), run('tuned', 1, 71, options={**KD, 'alpha': 0.5}),
          run('slow', 1, 72, options={**KD, 'learning_rate': 0.01}),
          run('other', 1, 73, options={**KD, 'temperature': 5.0}),
          run('branches', 1, 73, options={**KD, 'alpha': [0.1, 0.9]})]
  runs.append(run('kd', 2, 70))
  for one, validated in zip((runs[0], runs[-1]), (0.6, 0.7), strict=True):
    one.result['val'] = {'top1': validated}
  found = rows(runs)
  assert found['kd'].val_mean == pytest.approx(65)
  assert found['kd'].family == found['tuned'].family == found['slow'].family
  assert len({row.family for row in found.values()}) == 3


def test_gains_are_paired_by_seed():
  gains = rows(three_seeds())['dih'].gains
  assert set(gains) == {'ce', 'kd'}
  # Over kd 1, 2, 0: mean 1, deviation 1. Over ce 4, 6, 5: the same deviation, mean 5.
  for baseline, mean in (('kd', 1), ('ce', 5)):
    assert gains[baseline].n == 3
    assert gains[baseline].mean == pytest.approx(mean)
    assert gains[baseline].standard_error == pytest.approx(1 / math.sqrt(3))
  assert rows(three_seeds())['ce'].gains['kd'].mean == pytest.approx(-4)


def test_gains_are_over_common_seeds_and_missing_ones_are_named():
  runs = [run('kd', 1, 60), run('kd', 2, 64), run('dih', 2, 65), run('dih', 3, 90),
          run('kd_matched', 4, 60)]
  gains = rows(runs)['dih'].gains
  assert set(gains) == {'kd'}
  assert (gains['kd'].mean, gains['kd'].standard_error, gains['kd'].n) == (
      pytest.approx(1), None, 1)
  name = 'cifar100: resnet110 -> resnet8'
  assert compare(runs)[1] == [
      f'{name}: kd lacks seeds 3, 4, which other methods have',
      f'{name}: kd_matched lacks seeds 1, 2, 3, which other methods have',
      f'{name}: dih lacks seeds 1, 4, which other methods have']


def test_one_seed_has_no_deviation():
  row = rows([run('ce', 1, 60)])['ce']
  assert (row.std, row.best_std, row.n) == (None, None, 1)


def test_without_validation_there_is_no_best():
  runs = [run('ce', seed, 60) for seed in (1, 2)]
  for one in runs:
    one.result['val'] = None
  row = rows(runs)['ce']
  assert (row.best_mean, row.best_std, row.mean) == (None, None, pytest.approx(60))


def test_rows_come_baselines_first_then_known_then_as_found():
  names = ('mine', 'dih', 'another', 'kd_matched', 'at', 'ce', 'kd')
  assert [row.method for row in compare([run(name, 1, 60) for name in names])[0][0].rows] == [
      'ce', 'kd', 'kd_matched', 'at', 'dih', 'mine', 'another']


@pytest.mark.parametrize('field', ['data', 'teacher', 'student'])
def test_other_pairs_are_other_pairs(field):
  pairs, problems = compare([run('ce', 1, 60), run('ce', 2, 70, **{field: 'other'})])
  assert [getattr(pair, field) for pair in pairs][1:] == ['other'] and problems == []
  assert [pair.rows[0].seeds for pair in pairs] == [(1,), (2,)]


def test_protocols_are_not_mixed_and_the_difference_is_named():
  protocols = [json.dumps({'student': {'train': {'length': length}, 'kwargs': kwargs}, 'x': 1})
               for length, kwargs in ((200, {}), (240, {'width': 4}), (200, {}))]
  runs = [run('ce', seed, 60 + seed, protocol=protocol) for seed, protocol in enumerate(protocols)]
  pairs, problems = compare([*runs, run('kd', 1, 60, protocol=protocols[1]),
                             run('kd', 7, 60, protocol=protocols[1])])
  assert [[(row.method, row.seeds) for row in pair.rows] for pair in pairs] == [
      [('ce', (0, 2))], [('ce', (1,)), ('kd', (1, 7))]]
  assert [pair.protocol for pair in pairs] == protocols[:2]
  assert problems == [
      'cifar100: resnet110 -> resnet8: runs under 2 protocols are not compared with each other; '
      'they differ in student.kwargs.width, student.train.length',
      'cifar100: resnet110 -> resnet8 (protocol 2 of 2): ce lacks seed 7, which other methods have']


def test_a_method_under_other_settings_is_not_averaged():
  runs = [run('kd', 1, 50, options={**KD, 'alpha': 0.1}), run('kd', 2, 60), run('kd', 3, 62)]
  pairs, problems = compare(runs)
  assert pairs[0].rows[0].seeds == (2, 3) and pairs[0].rows[0].mean == pytest.approx(61)
  assert problems == ['cifar100: resnet110 -> resnet8: kd has other alpha for seed 1, left out']


def test_teacher_heads_and_costs_come_from_the_runs_that_know_them():
  teacher = result(0.75, flops=500, parameters=1_736_564)
  runs = [run('ce', 1, 60), run('kd', 1, 60, teacher_result=teacher),
          run('dih', 1, 60, teacher_result=teacher, heads_result=heads('stage1'))]
  runs[1].result['flops'] = 20
  (pair,), _ = compare(runs)
  assert pair.teacher_top1 == pytest.approx(74)
  assert pair.costs == {'teacher': {'parameters': 1_736_564, 'flops': 500},
                        'student': {'parameters': 1234, 'flops': 20}}
  assert pair.heads == heads('stage1')
  (alone,), _ = compare(runs[:1])
  assert (alone.teacher_top1, alone.heads) == (None, None)
  assert alone.costs['teacher'] == {'parameters': None, 'flops': None}


def test_nothing_to_compare():
  assert compare([]) == ([], [])


# Published numbers.


def numbers(found) -> list[float]:
  return [number.top1 for number in found]


def test_published_numbers_stand_in_their_rows():
  found = rows([run(method, 1, 60) for method in OPTIONS])
  assert numbers(found['ce'].published) == [61.37]
  assert numbers(found['kd'].published) == [61.41]
  assert found['kd'].published[0].source == 'TAKD author, TAKD issue 7'
  assert found['kd_matched'].published == found['dih'].published == ()
  (pair,), _ = compare([run('ce', 1, 60)])
  assert numbers(pair.teacher_published) == [74.31, 72.38]


TAUGHT = [
    ('resnet110', 'resnet20', KD, [70.67]),
    ('resnet110', 'resnet20', {**KD, 'alpha': 0.1}, [70.67]),
    ('resnet110', 'resnet20', {**KD, 'scale': 'cohort'}, []),
    ('resnet110', 'resnet20', {**KD, 'standardise': True}, []),
    ('resnet110', 'resnet20', dict(kind='dkd', standardise=False), [71.06]),
    ('resnet110', 'resnet20', dict(kind='dkd', standardise=True), []),
    ('wrn_40_2', 'wrn_16_2', dict(kind='fitnets'), [73.58]),
    ('wrn_40_2', 'wrn_40_1', dict(kind='at'), [72.77]),
    ('vgg13', 'vgg8', dict(kind='crd'), [73.94]), ('vgg13', 'vgg8', dict(kind='ce'), [70.36]),
    ('resnet32x4', 'resnet8x4', dict(kind='dkd'), [76.32]),
    ('resnet110', 'resnet8', dict(kind='takd', chain=['resnet20']), [61.82]),
    ('resnet110', 'resnet8', dict(kind='takd', chain=['resnet14']), []),
    ('resnet20', 'resnet110', KD, []), ('resnet110', 'resnet20', dict(kind='dih'), []),
]


@pytest.mark.parametrize('teacher, student, method, expected', TAUGHT)
def test_published_numbers_are_matched(teacher, student, method, expected):
  assert numbers(published.taught('cifar100', teacher, student, method)) == expected
  assert numbers(published.taught('cifar100:3.0.2', teacher, student, method)) == expected
  assert published.taught('cifar10', teacher, student, method) == ()


def test_published_numbers_have_a_source_and_a_protocol():
  (kd,) = published.taught('cifar100', 'resnet56', 'resnet20', KD)
  (dkd,) = published.taught('cifar100', 'resnet56', 'resnet20', dict(kind='dkd'))
  assert kd.source == 'RepDistiller README' and kd.protocol.startswith('last epoch')
  assert (dkd.source, dkd.protocol) == ('mdistiller README', 'best epoch on test')
  assert published.alone('cifar10', 'resnet110') == published.alone('cifar100', 'resnet44') == ()


def test_runs_on_other_data_are_not_compared_if_both_record_their_data():
  """A run of an earlier version records no data, and is compared with the first runs."""
  pairs, problems = compare([
      made_of(run('kd', 1, 70), data='a'), run('kd', 2, 71), made_of(run('kd', 3, 72), data='b')])
  assert [pair.rows[0].seeds for pair in pairs] == [(1, 2), (3,)]
  assert problems == ['cifar100: resnet110 -> resnet8: runs under 2 protocols are not compared '
                      'with each other; they differ in data']


@pytest.mark.parametrize(('jax', 'models', 'method', 'seeds', 'said'), [
    ('1', 'm', 'k', [(1, 2)], []),
    ('1', 'n', 'k', [(1,), (2,)], ['differ in computation']),
    ('1', 'm', 'l', [(1,)], ['kd has other computation for seed 2, left out']),
    ('2', 'n', 'l', [(1, 2)], [])])  # Another jax traces another program of the same code.
def test_another_computation_is_known_under_the_same_jax(jax, models, method, seeds, said):
  first = made_of(run('kd', 1, 70), computation=dict(jax='1', models='m', method='k'))
  second = made_of(run('kd', 2, 71), computation=dict(jax=jax, models=models, method=method))
  pairs, problems = compare([first, second])
  assert [pair.rows[0].seeds for pair in pairs] == seeds
  assert len(problems) >= len(said) and all(any(line.endswith(text) for line in problems)
                                            for text in said)
  assert bool(problems) == bool(said)


def test_the_caption_states_that_all_seeds_saw_the_same_batches():
  def pair(order_seed, seeds):
    protocol = json.dumps({'data.order_seed': order_seed})
    (found,), _ = compare([run('kd', seed, 70, protocol=protocol) for seed in seeds])
    return found

  assert 'All seeds saw the same batches' in tables.caption(pair(0, (1, 2)))
  assert 'same batches' not in tables.caption(pair(0, (1,)))
  assert 'same batches' not in tables.caption(pair(-1, (1, 2)))
