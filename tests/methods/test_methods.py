"""The ways to teach: what each loss is, how options are checked, how a new method is found."""
import importlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, methods
from kdih.config import fields, recipes
from kdih.data.spec import DataSpec
from kdih.distillation import losses
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.distillation.signal import TeacherSignal
from kdih.models.taps import Output
from kdih.phases import networks
from tests.helpers import lessons
from tests.helpers.runs import read_config

KD = dict(kind='kd', alpha=0.1, temperature=5.0, scale='one', gain=1.0, standardise=False)
DIH = dict(kind='dih', alpha=0.1, temperature=5.0, reduction='sum', cross_entropy='per_branch',
           members='cohort', weights='equal', gain=1.0, standardise=False)
RNG = np.random.default_rng(3)
STUDENT = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
MEMBERS = {name: jnp.asarray(RNG.normal(scale=2, size=(4, 6)), jnp.float32)
           for name in ('stage1', 'stage2', 'stage3', 'final')}
LABELS = jnp.array([0, 5, 2, 3])
NEW_METHOD = '''
from kdih.distillation import method

class Method(method.Method):
  weight: float

  def check(self):
    if self.weight < 0:
      raise ValueError(f'weight: {self.weight} is below 0')

  def __call__(self, lesson):
    gap = lesson.student.logits - lesson.teacher.logits
    return {'mse': self.weight * (gap**2).mean(-1)}
'''


def make(options, num_members=4, **changes):
  return methods.create('mine', {**options, **changes}, Context(num_members=num_members))


def lesson(members):
  teacher = lessons.signal(
      Output(members['final'], {}), list(members.values())) if members else TeacherSignal()
  return Lesson(images=None, labels=LABELS, student=Output(STUDENT, {}), teacher=teacher)


def loss(options, cohort=MEMBERS, **changes):
  """[batch] of the members with these logits."""
  return np.asarray(lessons.total(make(options, **changes).apply({}, lesson(cohort))))


def kd(teacher, alpha, temperature):
  return lessons.total(losses.kd_terms(STUDENT, teacher, LABELS, alpha, temperature))


def message(options, num_members=4):
  with pytest.raises(errors.ConfigError) as caught:
    methods.create('mine', options, Context(num_members=num_members))
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.fixture
def folder_of_methods(tmp_path, monkeypatch):
  monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path)])
  importlib.invalidate_caches()
  yield tmp_path
  for name in [m for m in sys.modules if m.startswith('kdih.methods.') and 'squared_gap' in m]:
    del sys.modules[name]


def test_the_methods_are_named_after_their_files():
  assert {'ce', 'dih', 'kd'} <= set(methods.names())
  assert list(methods.names()) == sorted(methods.names())


def test_what_each_method_is_taught_by():
  kinds = {'ce': {'kind': 'ce'}, 'kd': KD, 'dih': DIH}
  found = {kind: make(options).taught_by for kind, options in kinds.items()}
  assert found == {'ce': 'labels', 'kd': 'teacher', 'dih': 'cohort'}


def test_ce_uses_the_labels_alone():
  expected = losses.cross_entropy(STUDENT, LABELS)
  np.testing.assert_array_equal(loss({'kind': 'ce'}, {}), expected)


def test_kd_uses_the_teachers_own_classifier_alone():
  alone = {'final': MEMBERS['final']}
  expected = kd(MEMBERS['final'], 0.3, 2.0)
  np.testing.assert_array_equal(loss(KD, alone, alpha=0.3, temperature=2.0), expected)
  np.testing.assert_array_equal(loss(KD, alpha=0.3, temperature=2.0), expected)


def test_kd_scaled_by_the_cohort_is_kd_once_per_member():
  matched = loss(KD, scale='cohort')
  np.testing.assert_allclose(matched, 4 * loss(KD), rtol=1e-6)
  np.testing.assert_allclose(matched, loss(DIH, members='teacher'), rtol=1e-5)
  assert not np.allclose(matched, loss(DIH), rtol=1e-2)


def test_dih_sums_kd_over_the_members():
  kds = [kd(t, 0.1, 5.0) for t in MEMBERS.values()]
  np.testing.assert_allclose(loss(DIH), np.sum(kds, axis=0), rtol=1e-5)
  np.testing.assert_allclose(loss(DIH, reduction='mean'), np.mean(kds, axis=0), rtol=1e-5)


def test_dih_gives_alphas_and_temperatures_to_the_members_in_cohort_order():
  alphas, temperatures = (0.2, 0.0, 0.5, 0.9), (1.0, 2.0, 3.0, 4.0)
  expected = sum(kd(t_b, a, t) for a, t, t_b
                 in zip(alphas, temperatures, MEMBERS.values(), strict=True) if a)
  found = loss(DIH, alpha=alphas, temperature=temperatures)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dih_with_one_cross_entropy_lacks_the_other_three():
  less = loss(DIH) - loss(DIH, cross_entropy='once')
  np.testing.assert_allclose(
      less, 3 * 0.9 * np.asarray(losses.cross_entropy(STUDENT, LABELS)), rtol=1e-4)


def test_options_may_be_lists():
  np.testing.assert_array_equal(loss(DIH, alpha=[0.1] * 4), loss(DIH))


def test_the_recipes_weight_kd_as_their_sources_do():
  paper, repdistiller = (fields.base(recipe).methods for recipe in recipes.RECIPES)
  for name in ('kd', 'takd', 'fitnets'):  # All three are compared with each other.
    assert (paper[name].alpha, paper[name].temperature) == (0.1, 5.0)
    assert (repdistiller[name].alpha, repdistiller[name].temperature) == (0.9, 4.0)


def entry(name):
  return fields.base().methods[name].to_dict()


def test_the_entries_have_the_numbers_of_their_sources():
  """Those of test_{crd,logits,at_nst_vid,sp_cc_rkd_pkt}.py are held there."""
  hint = dict(kind='fitnets', hint=2, alpha=0.1, temperature=5.0, cross_entropy=1.0, weight=100.0)
  assert entry('fitnets') == {**hint, 'phases': 'two'}
  assert entry('fitnets_one') == {**hint, 'phases': 'one'}
  assert entry('ft') == dict(kind='ft', rate=0.5, cross_entropy=1.0, weight=200.0)
  assert entry('ab') == dict(kind='ab', margin=1.0)
  assert entry('reviewkd') == dict(
      kind='reviewkd', width=0, warmup_epochs=20.0, cross_entropy=1.0, weight=1.0)
  assert entry('tofd') == dict(kind='tofd', temperature=3.0, alpha=0.05, beta=0.03)
  assert entry('mhkd') == dict(kind='mhkd', alpha=0.1, temperature=4.0, beta=0.5, width=256)
  assert entry('dml') == dict(kind='dml', peers=('student',), alpha=0.5, temperature=1.0)
  assert entry('takd') == dict(kind='takd', chain=('resnet20',), alpha=0.1, temperature=5.0)
  assert entry('dih') == DIH


def test_a_control_differs_from_what_it_controls_in_one_thing():
  assert entry('kd_matched') == {**KD, 'scale': 'cohort'}
  assert entry('kd_repdistiller') == {**KD, 'alpha': 0.9, 'temperature': 4.0}
  for name, changes in (('mean', {'reduction': 'mean'}), ('once', {'cross_entropy': 'once'}),
                        ('teacher', {'members': 'teacher'}), ('accuracy', {'weights': 'accuracy'}),
                        ('learnt', {'weights': 'learnt'})):
    assert entry(f'dih_{name}') == {**DIH, **changes}
  for name, other in (('dih_at', 'at'), ('dih_crd', 'crd')):
    assert entry(name) == dict(kind='combined', methods=('dih', other), weights=(1.0, 1.0))


def test_a_hint_is_learnt_for_40_epochs_at_a_rate_of_a_tenth():
  """As in the code of the DIH paper."""
  prepare = fields.base().student.prepare
  assert (prepare.unit, prepare.length) == ('epochs', 40.0)
  assert (prepare.schedule, prepare.learning_rate) == ('constant', 0.1)


@pytest.mark.parametrize('options, expected', [
    ({**KD, 'kind': 'dhi'},
     "config.methods.mine.kind: unknown 'dhi'; did you mean 'dih'? choose from: "),
    ({'alpha': 0.1}, 'config.methods.mine.kind: '),
    ({**KD, 'temprature': 3.0},
     "config.methods.mine.temprature: unknown 'temprature'; did you mean 'temperature'? "
     'choose from: alpha, gain, learning_rate, scale, standardise, temperature'),
    ({**KD, 'num_members': 3}, "config.methods.mine.num_members: unknown 'num_members'; "),
    ({'kind': 'ce', 'alpha': 0.1}, "config.methods.mine.alpha: unknown 'alpha'; "),
    ({k: v for k, v in KD.items() if k != 'scale'},
     "config.methods.mine.scale: is not set; the kind 'kd' needs it"),
    ({**KD, 'scale': 'cohorts'},
     "config.methods.mine.scale: unknown 'cohorts'; did you mean 'cohort'? "
     'choose from: cohort, one'),
    ({**DIH, 'reduction': 'means'}, "config.methods.mine.reduction: unknown 'means'; did you "),
    ({**DIH, 'cross_entropy': 'twice'}, "config.methods.mine.cross_entropy: unknown 'twice'; "),
    ({**DIH, 'members': 'teachers'}, "config.methods.mine.members: unknown 'teachers'; did you "),
])
def test_an_unknown_or_missing_option_is_named(options, expected):
  assert message(options).startswith(expected)


@pytest.mark.parametrize('option', ['alpha', 'temperature'])
@pytest.mark.parametrize('value', [(0.5, 0.5), (0.5,) * 5])
def test_a_wrong_count_of_numbers_per_member_is_refused(option, value):
  assert message({**DIH, option: value}) == (
      f'config.methods.mine.{option}: has {len(value)} numbers; give one, or one for each of the '
      '4 members (heads in tap order, then the teacher)')


@pytest.mark.parametrize('option', ['alpha', 'temperature'])
def test_kd_has_one_teacher_and_refuses_numbers_per_member(option):
  assert message({**KD, option: (0.5,) * 4}).startswith(f'config.methods.mine.{option}: ')


@pytest.mark.parametrize('alpha', [0.0, (0.0,) * 4])
def test_a_cohort_in_which_none_teaches_is_refused(alpha):
  assert message({**DIH, 'alpha': alpha}).startswith(
      'config.methods.mine.alpha: is 0 for every member')


def test_a_method_does_not_change_its_options():
  options = dict(DIH)
  methods.create('mine', options, Context(num_members=4))
  assert options == DIH


def test_every_kind_has_an_entry():  # `test_every_method.py` trains the entries.
  assert {entry.kind for entry in fields.base().methods.values()} == set(methods.names())


def test_a_new_method_is_one_new_file(folder_of_methods):
  (folder_of_methods / 'squared_gap.py').write_text(NEW_METHOD)
  assert 'squared_gap' in methods.names()
  found = loss({'kind': 'squared_gap', 'weight': 2.0})
  expected = 2 * np.square(np.asarray(STUDENT - MEMBERS['final'])).mean(-1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_checks_of_a_new_method_name_its_setting(folder_of_methods):
  (folder_of_methods / 'squared_gap.py').write_text(NEW_METHOD)
  assert message({'kind': 'squared_gap', 'weight': -1.0}) == (
      'config.methods.mine.weight: -1.0 is below 0')
  assert message({'kind': 'squared_gap', 'wieght': 1.0}).startswith(
      "config.methods.mine.wieght: unknown 'wieght'; did you mean 'weight'? ")


@pytest.mark.parametrize('code, error', [
    ('losses.tempered_lk(lesson.student.logits)', 'cannot be built with these options: module '
     "'kdih.distillation.losses' has no attribute 'tempered_lk' (squared_gap.py, line "),
    ('jnp.log(lesson.teacher.members)', 'does not fit the teacher '),
])
def test_an_error_in_the_code_of_a_method_names_file_and_line(folder_of_methods, code, error):
  path = folder_of_methods / 'squared_gap.py'
  path.write_text('from jax import numpy as jnp\nfrom kdih.distillation import losses\n'
                  + NEW_METHOD.replace('lesson.student.logits - lesson.teacher.logits', code))
  config = read_config(folder_of_methods, 'unused', '--config.student.methods=mine',
                       '--config.methods.mine.kind=squared_gap', '--config.methods.mine.weight=1')
  with pytest.raises(errors.ConfigError) as caught:
    networks.build(config, DataSpec('arrays', (8, 8, 1), 10))
  line = path.read_text().splitlines().index(f'    gap = {code}') + 1
  assert str(caught.value).startswith(f'config.methods.mine: {error}')
  assert str(caught.value).endswith(f'(squared_gap.py, line {line})')
