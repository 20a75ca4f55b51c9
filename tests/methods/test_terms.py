"""The terms of the losses by their names: what they are, and what a run tells of them."""
import dataclasses

import jax
import numpy as np
import pytest

from kdih import errors
from kdih.config import fields
from kdih.data.spec import DataSpec
from kdih.distillation import method as method_lib
from kdih.phases import networks
from tests.helpers import method_terms
from tests.helpers.runs import read_config

METHODS = fields.base().methods.to_dict()
# Of each kind that is prepared, the terms of that.
PREPARED = {'fitnets': {'feature'}, 'ab': {'boundary'}, 'tofd': {'ce'}, 'ft': {'paraphrase'}}


@pytest.fixture(scope='module')
def built():
  config = read_config('unused', 'unused', f'--config.student.methods={",".join(METHODS)}',
                       '--config.sync_batch_norm=False')
  return networks.build(config, DataSpec('arrays', (8, 8, 1), 10))


def shapes(built, name, phase):
  """Of the terms of a lesson of two images; nothing is computed."""
  method = built.methods[name]
  lesson = networks.blank_lesson(built, method, 40)

  def both(method, lesson):
    return (method.prepare(lesson) if method.prepares else {}), method(lesson)

  def terms():
    key = jax.random.key(0)
    variables = method.init(key, lesson, method=both)
    return method.apply(variables, lesson, method=phase, mutable=['batch_stats', 'memory'],
                        rngs={'dropout': key})[0]

  return {term: leaf.shape for term, leaf in jax.eval_shape(terms).items()}


@pytest.mark.parametrize('name', sorted(METHODS))
def test_every_method_names_its_terms(built, name):
  found = shapes(built, name, '__call__')
  assert found.keys() == method_terms.of(METHODS, name)
  assert set(found.values()) <= {(), (2,)}
  for term, shape in found.items():  # Labels and logits are compared image by image.
    kind = METHODS[name.partition('/')[0]]['kind']
    if term.rpartition('/')[2] in ('ce', 'kl', 'tckd', 'nckd') and kind != 'tofd':
      assert shape == (2,), term


def test_what_is_prepared_has_terms_of_its_own(built):
  prepared = {name for name, method in built.methods.items() if method.prepares}
  assert prepared
  for name in prepared:
    kind = METHODS[name]['kind']
    expected = ({f'{part}/{term}' for part in METHODS[name]['methods']
                 for term in PREPARED.get(METHODS[part]['kind'], ())}
                if kind == 'combined' else PREPARED[kind])
    assert shapes(built, name, 'prepare').keys() == expected


@pytest.mark.parametrize('phase, terms', [
    ('teacher', {'ce'}), ('heads', {'ce/stage1', 'ce/stage2'}), ('student/ce', {'ce'}),
    ('student/kd', {'ce', 'kl'}), ('student/dih', {'ce', 'kl'})])
def test_every_phase_logs_its_terms_and_they_add_up_to_the_loss(finished, phase, terms):
  for parts in method_terms.logged(finished / phase, terms):
    assert min(parts) > 0


@pytest.mark.parametrize(('returned', 'expected'), [
    (np.zeros(2), "returns no terms of a loss; return a dict such as {'ce'"), ({}, 'no terms'),
    ({'ce': np.zeros(2), 'top1': np.zeros(2)}, "returns a term 'top1', which is the name"),
    ({'ce': np.zeros(2), 'penalty': 0.0}, "a term 'penalty' that is not an array"),
    ({'ce': np.zeros((2, 10))}, "a term 'ce' that is not an array")])
def test_a_method_of_ones_own_that_names_no_terms_gets_a_line(built, returned, expected):
  class Own(method_lib.Method):
    def __call__(self, lesson):
      return returned

  config = read_config('unused', 'unused')
  own = dataclasses.replace(built, methods={'own': Own(method_lib.Context())})
  with pytest.raises(errors.ConfigError, match='^config.methods.own: ') as raised:
    networks._check_pair(config, own, 'own')
  assert expected in str(raised.value)
