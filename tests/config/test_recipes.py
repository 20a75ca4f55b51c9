"""Recipes: the defaults in which they differ, and what one more takes."""
import pytest

from kdih import errors
from kdih.config import checks, fields, flags, recipes
from tests.helpers.runs import ROOT

THIRD = {'train': dict(length=100.0, learning_rate=0.2, milestones=(50.0,), decay=0.5,
                       nesterov=False),
         'logits': dict(alpha=0.3, temperature=2.0)}


@pytest.fixture
def third(monkeypatch):
  monkeypatch.setitem(recipes.RECIPES, 'third', THIRD)


def test_every_recipe_sets_the_same_fields():
  shapes = {tuple((part, *values) for part, values in recipe.items())
            for recipe in recipes.RECIPES.values()}
  assert len(shapes) == 1


def test_a_third_recipe_is_one_entry(third):
  config = fields.base('third')
  checks.check(config)
  for group in (config.teacher.train, config.heads.train, config.student.train):
    assert {name: group[name] for name in THIRD['train']} == THIRD['train']
    assert group.momentum == 0.9
  prepare = config.student.prepare
  assert (prepare.length, prepare.milestones, prepare.schedule) == (40.0, (20.0, 30.0), 'constant')
  assert (prepare.learning_rate, prepare.decay, prepare.nesterov) == (0.2, 0.5, False)
  for name in ('kd', 'takd', 'fitnets'):
    assert (config.methods[name].alpha, config.methods[name].temperature) == (0.3, 2.0)
  # Those that name their weights keep them.
  assert (config.methods.kd_matched.alpha, config.methods.kd_matched.temperature) == (0.1, 5.0)
  assert (config.methods.kd_repdistiller.alpha, config.methods.dih.alpha) == (0.9, 0.1)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'digits', 'image_folder', 'tiny_imagenet'])
def test_config_files_take_a_third_recipe(third, name):
  config = flags.read(['kdih', f'--config={ROOT}/configs/{name}.py:recipe=third',
                       '--workdir=w'])[0]
  checks.check(config)
  assert config.methods.kd.alpha == 0.3
  assert config.student.train.decay == 0.5 and config.student.train.nesterov is False


def test_a_recipe_that_does_not_exist_is_named():
  with pytest.raises(errors.ConfigError, match="recipe: unknown 'papre'; did you mean 'paper'"):
    fields.base('papre')


@pytest.mark.parametrize('recipe', recipes.RECIPES)
def test_a_recipe_does_not_share_its_values_with_a_config(recipe):
  first = fields.base(recipe)
  first.methods.kd.alpha, first.student.train.length = 0.77, 7.0
  first.student.kwargs.width = 3
  second = fields.base(recipe)
  assert second.methods.kd.alpha != 0.77 and second.student.train.length != 7.0
  assert not second.student.kwargs
