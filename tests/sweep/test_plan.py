"""Which runs a sweep consists of, and in which order."""
import pytest

from kdih.config import fields
from kdih.errors import ConfigError
from kdih.sweep import plan


def test_the_runs_come_seed_by_seed():
  config = fields.base()
  config.sweep.update(pairs=('resnet110:resnet8', 'vgg13:vgg8'), methods=('ce', 'kd'),
                      seeds=(1, 2))
  names = [one.name for one, in plan.runs(config, plan.pairs(config))]
  assert names == [f'{pair}/{method}/seed{seed}' for seed in (1, 2)
                   for pair in ('resnet110/resnet8', 'vgg13/vgg8') for method in ('ce', 'kd')]


def test_with_a_cache_the_runs_come_teacher_by_teacher():
  config = fields.base()
  config.sweep.update(pairs=('resnet110:resnet8', 'vgg13:vgg8', 'resnet110:resnet20'),
                      methods=('kd',), seeds=(1, 2))
  config.compute.cache = 'all_views'
  names = [one.name for one, in plan.runs(config, plan.pairs(config))]
  assert names == [*(f'resnet110/{student}/kd/seed{seed}' for seed in (1, 2)
                     for student in ('resnet8', 'resnet20')),
                   'vgg13/vgg8/kd/seed1', 'vgg13/vgg8/kd/seed2']


def test_the_arguments_of_a_model_are_not_those_of_another():
  config = fields.base()
  config.student.kwargs.width = 4
  config.sweep.students = ('resnet8', 'resnet20')
  first, second = plan.pairs(config)
  assert first.config.student.kwargs.to_dict() == {'width': 4}
  assert second.config.student.kwargs.to_dict() == {}
  assert config.student.name == 'resnet8'


@pytest.mark.parametrize('pair', ['resnet8', ':resnet8', 'resnet8:', ''])
def test_a_pair_is_two_names(pair):
  config = fields.base()
  config.sweep.pairs = (pair,)
  with pytest.raises(ConfigError, match="is not 'teacher:student'"):
    plan.pairs(config)


def test_a_pair_may_hold_import_paths():
  config = fields.base()
  config.sweep.pairs = ('m.n:A:resnet8', 'resnet8:m.n:A', 'm.n:A:m.n:B', 'resnet8:resnet20')
  assert [(pair.teacher, pair.student) for pair in plan.pairs(config)] == [
      ('m.n:A', 'resnet8'), ('resnet8', 'm.n:A'), ('m.n:A', 'm.n:B'), ('resnet8', 'resnet20')]
