"""A config without ml_collections is used like one."""
import pytest

from kdih.config import fields, method_presets, plain


def test_it_has_the_defaults_of_a_recipe_and_what_overrides_them():
  for recipe in ('paper', 'repdistiller'):
    assert plain.config({}, recipe).to_dict() == fields.base(recipe).to_dict()
  assert plain.config({'student.train.length': 3.0}).student.train.length == 3.0
  with pytest.raises(KeyError, match='student.nam'):
    plain.config({'student.nam': 'resnet8'})


def test_what_is_set_is_kept_by_copies_and_a_copy_is_another():
  config = plain.config({})
  config.student.train.length = 7.0
  copy = config.copy_and_resolve_references()
  copy.student.train.length = 8.0
  assert config.to_dict()['student']['train']['length'] == 7.0
  assert copy.student.train['length'] == 8.0


@pytest.mark.parametrize('base', [fields.base, lambda: plain.config({})])
def test_a_learning_rate_of_a_methods_own_changes_no_other_field(base):
  config = base()
  if base is fields.base:
    rate = config.student.train.get_ref('learning_rate')
    config.student.train.weight_decay = rate * 0.01
  config.methods.kd['learning_rate'] = 0.5
  before = config.student.train.weight_decay
  train = method_presets.training(config, 'kd')
  assert (train.learning_rate, train.weight_decay) == (0.5, before)
  assert config.student.train.learning_rate == 0.1
