"""Residual networks, plain, bottleneck and wide, and VGG: what their taps and norms hold."""
import functools

import jax
import numpy as np
import pytest

from kdih.models import registry, taps as taps_lib
from tests.helpers.model_checks import applied, close, random_images, random_variables, smaller


def test_logits_are_the_classifier_on_the_mean_of_the_last_tap():
  model, images = smaller('resnet8'), random_images(2, 6)
  variables = random_variables(model, images)
  assert set(variables) == {'params', 'batch_stats'}
  logits, taps = model.apply(variables, images, train=False, mutable=['intermediates'])
  classifier = variables['params']['classifier']
  pooled = taps['intermediates']['stage1'].mean((1, 2))
  close(logits, pooled @ classifier['kernel'] + classifier['bias'][None])


@pytest.mark.parametrize(('name', 'fields', 'rectified'), [
    ('resnet8', {'stage_sizes': (1,), 'stage_widths': (2,), 'stem_width': 2}, True),
    ('vgg8', {'layout': (4, 'pool', 8, 'tap')}, True), ('wrn_16_1', {'depth': 10}, False)])
def test_taps_are_after_the_relu_but_before_it_in_wide_resnets(name, fields, rectified):
  model, images = registry.create(name, 3, **fields), random_images(2, 4)
  variables = random_variables(model, images)
  apply = jax.jit(functools.partial(model.apply, train=True, mutable=True))
  _, updates = apply(variables, images)
  assert (updates['intermediates']['stage1'].min() >= 0) == rectified


@pytest.mark.slow
def test_synchronised_statistics_are_those_of_the_whole_batch():
  images = random_images(4, 6)
  variables = random_variables(smaller('resnet8'), images)

  def train_step(model, images):
    return model.apply(variables, images, train=True, mutable=['batch_stats'])[1]

  whole = train_step(smaller('resnet8'), images)
  sharded = images.reshape(2, 2, 6, 6, 3)
  synchronised = jax.vmap(
      functools.partial(train_step, smaller('resnet8', axis_name='batch')), axis_name='batch',
      out_axes=None)(sharded)
  close(synchronised, whole)


def normalised(x, params, statistics):
  """The batch norm of evaluation, in float64."""
  params, statistics = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, statistics))
  scale = params['scale'] / np.sqrt(statistics['var'] + 1e-5)
  return (np.asarray(x, np.float64) - statistics['mean']) * scale + params['bias']


@pytest.mark.parametrize(('tap', 'norm'), [
    ('stage1', 'stage2_block1/norm1'), ('stage2', 'stage3_block1/norm1'),
    ('stage3', 'final_norm')])
def test_the_preactivation_in_wide_resnets_is_the_norm_that_follows(tap, norm):
  found = applied('wrn_16_1')
  params, statistics = (functools.reduce(lambda tree, key: tree[key], norm.split('/'),
                                         found.variables[collection])
                        for collection in ('params', 'batch_stats'))
  close(found.preactivations[tap], normalised(found.taps[tap], params, statistics))


def test_a_norm_that_is_also_a_preactivation_moves_once():
  found = applied('wrn_16_1', train=True)
  before, after = (tree['stage2_block1']['norm1']['mean']
                   for tree in (found.variables['batch_stats'], found.statistics))
  close(after, 0.9 * before + 0.1 * found.taps['stage1'].mean((0, 1, 2)))


def test_the_preactivation_in_a_resnet_is_the_sum_of_the_last_block():
  found = applied('resnet50')
  shortcut = np.maximum(found.outputs['stage2_block1'], 0)
  close(found.preactivations['stage2'], found.outputs['stage2_block2/norm3'] + shortcut)


def test_a_bottleneck_strides_in_its_second_convolution_and_widens_in_its_third():
  outputs = applied('resnet50').outputs
  assert {layer: outputs[f'stage2_block1/{layer}'].shape[1:]
          for layer in ('conv1', 'conv2', 'conv3', 'projection')} == {
              'conv1': (8, 8, 3), 'conv2': (4, 4, 3), 'conv3': (4, 4, 12), 'projection': (4, 4, 12)}
  assert 'stage2_block2/projection' not in outputs
  kernels = applied('resnet50').variables['params']['stage2_block1']
  assert [len(kernels[f'conv{i}']['kernel']) for i in (1, 2, 3)] == [1, 3, 1]


@pytest.mark.parametrize('size', [8, 9])
def test_the_imagenet_stem_pools_padded_windows(size):
  found = applied('resnet18_imagenet', size=size)
  assert found.variables['params']['stem']['kernel'].shape == (7, 7, 3, 2)
  stem = np.maximum(found.outputs['stem_norm'], 0)
  side = stem.shape[1]
  assert side == (size + 1) // 2
  padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)))
  pooled = np.stack([np.stack([padded[:, i:i + 3, j:j + 3].max((1, 2))
                               for j in range(0, side, 2)], 1) for i in range(0, side, 2)], 1)
  close(found.outputs['stage1_block1'], pooled + found.outputs['stage1_block1/norm2'])


def test_the_preactivation_behind_a_pool_of_vgg_is_the_largest_of_the_norm():
  found = applied('vgg11')
  expected = found.outputs['norm2'].reshape(2, 4, 2, 4, 2, 8).max((2, 4))
  close(found.preactivations['stage2'], expected)


def test_a_block_of_a_wide_resnet_can_be_tapped_by_its_path():
  model = registry.create('wrn_16_1', 3)
  found = taps_lib.choose_taps(model, (32, 32, 3), ('stage2_block2',))
  assert found == {'stage2_block2': (16, 16, 32)}
