"""Heads on taps, and the members of the cohort that they form with the teacher."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import methods
from kdih.cohort import head_modules
from kdih.cohort.members import cohort_logits
from kdih.distillation import losses
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.distillation.signal import TeacherSignal
from kdih.models import registry, taps
from tests.helpers import lessons
from tests.helpers.slow import slow
from tests.helpers.tapped_nets import CLASSES, IMAGES, Nested, Net, features, variables


def frozen(model, kind='flatten', names=('stage2', 'stage1')):
  heads = head_modules.Heads(CLASSES, kind)
  heads_variables = heads.init(jax.random.key(3), features(model, *names)[1])
  return heads, {'teacher': variables(model), 'heads': heads_variables}


def head_sizes(name, kind):
  found = taps.choose_taps(registry.create(name, 100), (32, 32, 3), ())
  inputs = {tap: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for tap, shape in found.items()}
  heads = head_modules.Heads(100, kind)
  params = jax.eval_shape(lambda f: heads.init(jax.random.key(0), f), inputs)['params']
  return [sum(leaf.size for leaf in jax.tree.leaves(params[tap])) for tap in found]


@pytest.mark.parametrize('names', [('stage2', 'stage1'), ('stage1', 'stage2'), ()])
def test_members_are_the_heads_in_tap_order_and_then_the_teacher(names):
  heads, all_frozen = frozen(Net())
  found = cohort_logits(Net(), heads, all_frozen, IMAGES, names)
  assert tuple(found) == (*names, 'final')
  assert {z.shape for z in found.values()} == {(2, CLASSES)}


def test_alphas_go_to_the_heads_in_tap_order_and_then_to_the_teacher():
  heads, all_frozen = frozen(Net())
  dih = methods.create('dih', dict(
      kind='dih', alpha=(0.9, 0.0, 0.0), temperature=(2.0, 3.0, 4.0), reduction='sum',
      cross_entropy='per_branch', members='cohort', weights='equal', gain=1.0, standardise=False),
      Context(num_members=3))
  student, labels = jnp.ones((2, CLASSES)), jnp.array([0, 3])

  def compute(tree):
    members = cohort_logits(Net(), heads, tree, IMAGES, ('stage2', 'stage1'))
    signal = TeacherSignal(members=jnp.stack(list(members.values()), axis=1))
    lesson = Lesson(
        images=IMAGES, labels=labels, student=taps.Output(student, {}), teacher=signal)
    return lessons.total(dih.apply({}, lesson)), members['stage2']

  found, first_head = jax.jit(compute)(all_frozen)
  expected = lessons.total(losses.kd_terms(student, first_head, labels, 0.9, 2.0))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['flatten', 'gap'])
def test_each_head_is_one_dense_on_its_feature(kind):
  heads, all_frozen = frozen(Net(), kind)
  members = cohort_logits(Net(), heads, all_frozen, IMAGES, ('stage2', 'stage1'))
  _, found = features(Net(), 'stage2', 'stage1')
  for tap, feature in found.items():
    feature, params = np.asarray(feature, np.float64), all_frozen['heads']['params'][tap]
    inputs = feature.reshape(2, -1) if kind == 'flatten' else feature.mean((1, 2))
    expected = inputs @ np.asarray(params['kernel'], np.float64) + np.asarray(params['bias'])
    np.testing.assert_allclose(members[tap], expected, rtol=1e-4, atol=1e-5)


def test_the_final_member_is_the_teacher_itself():
  heads, all_frozen = frozen(Net())
  members = cohort_logits(Net(), heads, all_frozen, IMAGES, ('stage1',))
  np.testing.assert_array_equal(members['final'], features(Net())[0])


def test_a_head_on_a_path_works_and_has_one_level_of_parameters():
  heads, all_frozen = frozen(Nested(), names=('Block_0/Dense_0',))
  members = cohort_logits(Nested(), heads, all_frozen, IMAGES, ('Block_0/Dense_0',))
  assert list(members) == ['Block_0/Dense_0', 'final']
  params = all_frozen['heads']['params'][head_modules.param_name('Block_0/Dense_0')]
  assert {name: p.shape for name, p in params.items()} == {'kernel': (32, 5), 'bias': (5,)}


@pytest.mark.parametrize('names', [('stage2', 'stage1'), ()])
def test_no_gradient_reaches_the_teacher_or_the_heads(names):
  heads, all_frozen = frozen(Net())

  def total(tree, images):
    members = cohort_logits(Net(), heads, tree, images, names)
    return sum((z**2).sum() for z in members.values())

  assert total(all_frozen, IMAGES) > 0
  gradients = jax.grad(total, argnums=(0, 1))(all_frozen, IMAGES)
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('name, kind, sizes', [
    slow('resnet110', 'flatten', [1_638_500, 819_300, 409_700]),  # 2,867,500
    ('resnet18', 'flatten', [6_553_700, 3_276_900, 1_638_500, 819_300]),  # 12,288,400
    ('resnet8', 'gap', [1_700, 3_300, 6_500]),
])
def test_heads_have_the_published_number_of_parameters(name, kind, sizes):
  assert head_sizes(name, kind) == sizes
