"""The README of the methods: its names, defaults, numbers and example are those of the code."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import methods
from kdih.config import fields, method_presets, recipes
from kdih.data.spec import DataSpec
from kdih.distillation.method import Context
from kdih.phases import networks
from tests.helpers import lessons
from tests.helpers.runs import ROOT, read_config

FOLDER = ROOT / 'kdih/methods'
README = (FOLDER / 'README.md').read_text(encoding='utf-8')
PRESETS = fields.base().methods.to_dict()
SPEC = DataSpec('arrays', (8, 8, 1), 10)


def table(first: str) -> list[list[str]]:
  """The cells of the rows of the table whose first column has this title."""
  block = README.partition(f'| {first} |')[2].partition('\n\n')[0]
  return [line.strip('|').strip().split(' | ') for line in block.splitlines()[2:]]


ROWS = table('Entry | Taught by')


def name_of(row: list[str]) -> str:
  return re.match(r'\[`(\w+)`\]', row[0])[1]


def text_of(value) -> str:
  if isinstance(value, tuple):
    return ','.join(map(text_of, value))
  return str(value) if isinstance(value, bool | int | str) else f'{value:g}'


@pytest.fixture(scope='module')
def built():
  config = read_config('unused', 'unused', f'--config.student.methods={",".join(PRESETS)}')
  return networks.build(config, SPEC)


def test_every_preset_has_a_row_and_its_file():
  assert [name_of(row) for row in ROWS] == list(method_presets.methods('paper'))
  assert len(ROWS) == len(PRESETS) == 33
  for row in ROWS:
    assert len(row) == 7 and all(row)
    kind = PRESETS[name_of(row)]['kind']
    assert row[0] == f'[`{name_of(row)}`]({kind}.py)' and (FOLDER / f'{kind}.py').exists()


@pytest.mark.parametrize('row', ROWS, ids=name_of)
def test_the_options_of_a_row_are_those_of_the_preset(row):
  base, _, changes = row[3].rpartition(' with ')
  options = dict(re.findall(r'`(\w+)=([^`]+)`', changes))
  preset = {name: text_of(value) for name, value in PRESETS[name_of(row)].items()}
  if base:  # All of the changes are changes.
    of_base = {name: text_of(value) for name, value in PRESETS[base.strip('`')].items()}
    assert not options.items() & of_base.items()
    options = {**of_base, **options}
  assert options | {'kind': preset['kind']} == preset


def test_the_recipe_changes_the_options_that_the_document_names():
  paper, other = map(method_presets.methods, recipes.RECIPES)
  changed = [name for name in paper if paper[name] != other[name]]
  assert changed == ['kd', 'takd', 'fitnets', 'fitnets_one']
  for name in changed:
    assert (other[name]['alpha'], other[name]['temperature']) == (0.9, 4.0)
  assert ('with `recipe=repdistiller` the entries `kd`, `takd`, `fitnets` and `fitnets_one` have '
          'alpha 0.9 and temperature 4') in ' '.join(README.split())


@pytest.mark.parametrize('row', ROWS, ids=name_of)
def test_the_costs_of_a_row_are_those_of_the_method(built, row):
  name = name_of(row)
  method, cached, beside = built.methods[name], row[4], row[5]
  assert row[1] == method.taught_by
  assert cached == ('yes' if name in built.cached_signals else 'no')
  assert beside.startswith('prepared: ') == bool(method.prepares)
  assert ('whole batch' in beside) == bool(method.couples)
  assert ('each assistant' in beside) == bool(method.assistants)

  def both(method, lesson):
    return (method.prepare(lesson) if method.prepares else {}), method(lesson)

  defined = jax.eval_shape(lambda: method.init(
      jax.random.key(0), networks.blank_lesson(built, method, 40), method=both))
  nothing = beside in ('-', 'whole batch', 'memory for batch³ numbers; whole batch')
  assert nothing == (not jax.tree.leaves(defined) and not method.assistants)


def test_the_losses_of_the_controls_have_the_numbers_of_the_document():
  """By the weights of CE and of a KL without T^2, of a cohort of four."""
  found = {row[0].strip('`'): row[1] for row in table('Entry | Loss')}
  assert list(found) == ['kd', 'kd_matched', 'dih', 'dih_teacher', 'dih_mean', 'dih_once']
  students, teacher = jnp.array([[0.0, 1.0]]), jnp.array([[2.0, -1.0]])
  for name, formula in found.items():
    options = PRESETS[name]
    batch = lessons.lesson(
        labels=jnp.array([0]), student=lessons.output(1).replace(logits=students),
        teacher=lessons.signal(lessons.output(2).replace(logits=teacher), [teacher] * 4))
    terms = methods.create(name, options, Context(num_members=4)).apply({}, batch)
    ce = np.log(1 + np.e)
    p, q = (np.exp(z / 5) / np.exp(z / 5).sum() for z in (np.array([2, -1]), np.array([0, 1])))
    kl = (p * np.log(p / q)).sum()
    weight, teachers = re.match(r'([\d.]+) CE \+ ([\d.]+) ', formula).groups()
    count = 4 if 'sum_b' in formula else 1
    np.testing.assert_allclose(terms['ce'], float(weight) * ce, rtol=1e-5)
    np.testing.assert_allclose(terms['kl'], count * float(teachers) * kl, rtol=1e-4)


def test_the_noise_that_is_quoted_is_that_of_the_sweep():
  report = (ROOT / 'launch/results/cifar100_sweep/comparison/report.md').read_text('utf-8')
  row, = ([cell.strip() for cell in line.split(' | ')] for line in report.splitlines()
          if line.startswith('| dih_teacher '))
  assert row[1] == '3' and f'{row[6]} points (standard error, n = 3)' in README
