"""Taps: what a model sows and what its submodules give, chosen, and models that are refused."""
import flax.linen as nn
import numpy as np
import pytest

from kdih import errors
from kdih.models import taps
from kdih.models.model_checks import check_evaluation
from tests.helpers.tapped_nets import (
  CLASSES,
  IMAGES,
  SHAPE,
  STAGES,
  Nested,
  Net,
  features,
  variables,
)


class Broken(nn.Module):
  fault: str

  @nn.compact
  def __call__(self, x, train):
    if self.fault == 'raises':
      raise RuntimeError('first line\nsecond line')
    if self.fault == 'asserts':
      raise AssertionError
    logits = nn.Dense(CLASSES)(x.mean((1, 2)))
    return {'wide': nn.Dense(9)(logits), 'map': x[..., None] + x[:, :, :, None]
            }[self.fault]


class NoTrain(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(CLASSES)(x.mean((1, 2)))


def message(call, *args):
  with pytest.raises(errors.ConfigError) as caught:
    call(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


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


def test_without_wanted_taps_all_that_are_sown_are_chosen_from_the_shallowest_to_the_deepest():
  found = taps.choose_taps(Net(), SHAPE, ())
  assert list(found.items()) == [
      ('stage2', (4, 4, 6)), ('stage10', (4, 4, 6)), ('stage1', (2, 2, 6))]


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
      'Dense_0, BatchNorm_0, Dense_1')


@pytest.mark.parametrize('sows, tap, closest, choices', [
    (True, 'stge2', 'stage2', 'stage2, stage10, stage1'), (False, 'Dense0', 'Dense_0', 'Dense_0')])
def test_an_unknown_tap_is_refused_with_the_closest(sows, tap, closest, choices):
  found = message(taps.choose_taps, Net(sows), SHAPE, (tap,))
  hint, _, offered = found.partition('choose from: ')
  assert hint == f'config.heads.taps: unknown {tap!r}; did you mean {closest!r}? '
  assert choices in offered


def test_a_model_that_fits_passes():
  check_evaluation(Net(), SHAPE, CLASSES, 'config.teacher.name')


@pytest.mark.parametrize('fault, expected', [
    ('wide', 'gives an array of shape (13, 9) for 13 of the 4x4x3 images; '
             'logits of shape (13, 5) are needed'),
    ('map', 'gives an array of shape (13, 4, 4, 3, 3) for 13 of the 4x4x3 images; '
            'logits of shape (13, 5) are needed'),
    ('raises', 'cannot be applied to 4x4x3 images: first line'),
])
def test_a_model_that_does_not_fit_is_refused(fault, expected):
  found = message(check_evaluation, Broken(fault), SHAPE, CLASSES, 'config.teacher.name')
  assert found == f'config.teacher.name: {expected}'


def test_a_model_that_fails_without_a_word_is_refused_with_the_kind_of_failure():
  found = message(check_evaluation, Broken('asserts'), SHAPE, CLASSES, 'config.teacher.name')
  assert found == 'config.teacher.name: cannot be applied to 4x4x3 images: AssertionError'


def test_a_model_without_the_argument_train_is_refused():
  found = message(check_evaluation, NoTrain(), SHAPE, CLASSES, 'config.student.name')
  assert found.startswith('config.student.name: cannot be applied to 4x4x3 images: ')
  assert "'train'" in found
