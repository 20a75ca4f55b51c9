"""Taps, and the cohort of heads that stands on them."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, methods
from kdih.cohort import head_modules, soft_label_mean
from kdih.cohort.members import cohort_logits
from kdih.distillation import losses
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.models import registry, taps

SHAPE, CLASSES = (4, 4, 3), 5
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)
STAGES = ('stage2', 'stage10', 'stage1')  # As they follow each other; stage10 is sown as a tuple.


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(2)(x))
    self.sow('intermediates', 'inner', x)
    return x


class Net(nn.Module):
  """Sows one tap by Flax's default, as a tuple, the others as arrays; has batch norm."""

  sows: bool = True

  def put(self, name, x):
    if self.sows:
      self.sow('intermediates', name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(6)(x)
    self.put('stage2', x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    if self.sows:
      self.sow('intermediates', 'stage10', x)
    x = x[:, ::2, ::2]
    self.put('stage1', x)
    return nn.Dense(CLASSES)(x.mean((1, 2)))


class Nested(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(CLASSES)(Block()(Block()(x)).mean((1, 2)))


class Broken(nn.Module):
  fault: str

  @nn.compact
  def __call__(self, x, train):
    if self.fault == 'raises':
      raise RuntimeError('first line\nsecond line')
    if self.fault == 'asserts':
      raise AssertionError
    logits = nn.Dense(CLASSES)(x.mean((1, 2)))
    return {'pair': (logits, x), 'wide': nn.Dense(9)(logits), 'map': x[..., None] + x[:, :, :, None]
            }[self.fault]


class NoTrain(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(CLASSES)(x.mean((1, 2)))


@functools.cache
def variables(model):
  found = taps.abstract_variables(model, SHAPE)
  rng = np.random.default_rng(2)
  return jax.tree.map(
      lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype), found)


def features(model, *names):
  output, _ = taps.observe(model, variables(model), IMAGES, names)
  return output.logits, output.features


def frozen(model, kind='flatten', names=('stage2', 'stage1')):
  heads = head_modules.Heads(CLASSES, kind)
  heads_variables = heads.init(jax.random.key(3), features(model, *names)[1])
  return heads, {'teacher': variables(model), 'heads': heads_variables}


def message(call, *args):
  with pytest.raises(errors.ConfigError) as caught:
    call(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def head_sizes(name, kind):
  found = taps.choose_taps(registry.create(name, 100), (32, 32, 3), ())
  inputs = {tap: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for tap, shape in found.items()}
  heads = head_modules.Heads(100, kind)
  params = jax.eval_shape(lambda f: heads.init(jax.random.key(0), f), inputs)['params']
  return [sum(leaf.size for leaf in jax.tree.leaves(params[tap])) for tap in found]


def test_the_logits_are_those_of_the_model_in_evaluation_mode():
  logits, _ = features(Net(), 'stage1')
  expected = Net().apply(variables(Net()), IMAGES, train=False)
  np.testing.assert_array_equal(logits, expected)


def test_sown_taps_hold_what_the_model_computed():
  params = variables(Net())['params']
  _, found = features(Net(), 'stage2', 'stage1')
  dense = IMAGES @ params['Dense_0']['kernel'] + params['Dense_0']['bias'][None, None, None]
  np.testing.assert_allclose(found['stage2'], dense, rtol=1e-5)
  assert found['stage1'].shape == (2, 2, 2, 6)


def test_a_tap_sown_by_flaxs_default_is_an_array_too():
  _, found = features(Net(), 'stage10', 'stage1')
  assert found['stage10'].shape == (2, 4, 4, 6)
  np.testing.assert_array_equal(found['stage10'][:, ::2, ::2], found['stage1'])


@pytest.mark.parametrize('sows', [True, False])
def test_the_path_of_a_submodule_taps_its_output(sows):
  model = Net(sows)
  _, found = features(model, 'Dense_0', 'BatchNorm_0')
  expected = features(Net(), 'stage2', 'stage10')[1]
  np.testing.assert_array_equal(found['Dense_0'], expected['stage2'])
  np.testing.assert_array_equal(nn.relu(found['BatchNorm_0']), expected['stage10'])


def test_a_path_reaches_into_submodules():
  _, found = features(Nested(), 'Block_1', 'Block_0/Dense_0', 'Block_0/inner')
  np.testing.assert_array_equal(found['Block_0/inner'], nn.relu(found['Block_0/Dense_0']))
  assert not np.array_equal(found['Block_1'], found['Block_0/inner'])


@pytest.mark.parametrize('names', [STAGES, STAGES[::-1], ('Dense_0', 'stage1'), ('stage1',), ()])
def test_features_come_in_the_order_that_was_asked_for(names):
  assert tuple(features(Net(), *names)[1]) == names


def test_without_wanted_taps_all_that_are_sown_are_chosen_in_natural_order():
  found = taps.choose_taps(Net(), SHAPE, ())
  assert list(found.items()) == [
      ('stage1', (2, 2, 6)), ('stage2', (4, 4, 6)), ('stage10', (4, 4, 6))]


@pytest.mark.parametrize('wanted', [('stage10', 'stage1'), ('stage2', 'Dense_0', 'stage1')])
def test_wanted_taps_keep_their_order(wanted):
  assert tuple(taps.choose_taps(Net(), SHAPE, wanted)) == wanted


def test_chosen_shapes_are_those_of_the_features():
  chosen = taps.choose_taps(Nested(), SHAPE, ('Block_0/Dense_0', 'Block_1/inner'))
  _, found = features(Nested(), *chosen)
  assert {name: value.shape[1:] for name, value in found.items()} == chosen


def test_a_model_that_sows_nothing_is_refused_with_the_submodules_to_name():
  assert message(taps.choose_taps, Net(sows=False), SHAPE, ()) == (
      'config.heads.taps: Net sows no taps; name submodules instead, from: '
      'BatchNorm_0, Dense_0, Dense_1')


@pytest.mark.parametrize('sows, tap, closest, choices', [
    (True, 'stge2', 'stage2', 'stage1, stage2, stage10'), (False, 'Dense0', 'Dense_0', 'Dense_0')])
def test_an_unknown_tap_is_refused_with_the_closest(sows, tap, closest, choices):
  found = message(taps.choose_taps, Net(sows), SHAPE, (tap,))
  hint, _, offered = found.partition('choose from: ')
  assert hint == f'config.heads.taps: unknown {tap!r}; did you mean {closest!r}? '
  assert choices in offered


def test_a_model_that_fits_passes():
  taps.check_model(Net(), SHAPE, CLASSES, 'config.teacher.name')


@pytest.mark.parametrize('fault, expected', [
    ('wide', 'gives an array of shape (1, 9) for one of the 4x4x3 images; '
             'logits of shape (1, 5) are needed'),
    ('map', 'gives an array of shape (1, 4, 4, 3, 3) for one of the 4x4x3 images; '
            'logits of shape (1, 5) are needed'),
    ('raises', 'cannot be applied to 4x4x3 images: first line'),
])
def test_a_model_that_does_not_fit_is_refused(fault, expected):
  found = message(taps.check_model, Broken(fault), SHAPE, CLASSES, 'config.teacher.name')
  assert found == f'config.teacher.name: {expected}'


def test_a_model_that_gives_more_than_logits_is_refused():
  found = message(taps.check_model, Broken('pair'), SHAPE, CLASSES, 'config.student.name')
  assert found.startswith('config.student.name: ')


def test_a_model_that_fails_without_a_word_is_refused_with_the_kind_of_failure():
  found = message(taps.check_model, Broken('asserts'), SHAPE, CLASSES, 'config.teacher.name')
  assert found == 'config.teacher.name: cannot be applied to 4x4x3 images: AssertionError'


def test_a_model_without_the_argument_train_is_refused():
  found = message(taps.check_model, NoTrain(), SHAPE, CLASSES, 'config.student.name')
  assert found.startswith('config.student.name: cannot be applied to 4x4x3 images: ')
  assert "'train'" in found


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
    lesson = Lesson(IMAGES, labels, taps.Output(student, {}), members=members)
    return dih.apply({}, lesson), members['stage2']

  found, first_head = jax.jit(compute)(all_frozen)
  expected = losses.kd_loss(student, first_head, labels, 0.9, 2.0)
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


def test_mean_logits_is_the_log_of_the_mean_softmax():
  rng = np.random.default_rng(4)
  members = {name: rng.normal(scale=3, size=(2, 4)) for name in 'abc'}
  soft = [np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in members.values()]
  found = soft_label_mean.mean_logits(
      {name: jnp.asarray(z, jnp.float32) for name, z in members.items()})
  np.testing.assert_allclose(found, np.log(np.mean(soft, axis=0)), rtol=1e-4)


@pytest.mark.parametrize('name, kind, sizes', [
    ('resnet110', 'flatten', [1_638_500, 819_300, 409_700]),  # 2,867,500
    ('resnet18', 'flatten', [6_553_700, 3_276_900, 1_638_500, 819_300]),  # 12,288,400
    ('resnet8', 'gap', [1_700, 3_300, 6_500]),
])
def test_heads_have_the_published_number_of_parameters(name, kind, sizes):
  assert head_sizes(name, kind) == sizes
