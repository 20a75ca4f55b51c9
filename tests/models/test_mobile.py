"""MobileNetV2 and the ShuffleNets: groups, shuffles, and what their taps hold."""
import numpy as np
import pytest

from kdih.models import layers, shufflenet
from tests.helpers.model_checks import applied, close, shapes


def test_a_shuffle_deals_the_channels_of_the_groups_in_turn():
  channels = np.arange(6, dtype=np.float32)
  found = shufflenet.shuffle(np.broadcast_to(channels, (2, 3, 4, 6)), 3)
  assert found.shape == (2, 3, 4, 6)
  np.testing.assert_array_equal(found[1, 2, 3], [0, 2, 4, 1, 3, 5])


def test_the_first_block_of_version_1_puts_its_averaged_inputs_last():
  found = applied('shufflenetv1').outputs
  stem = np.maximum(found['stem_norm'], 0)
  padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)))
  pooled = np.stack([np.stack([padded[:, i:i + 3, j:j + 3].mean((1, 2)) for j in range(0, 8, 2)], 1)
                     for i in range(0, 8, 2)], 1)  # A window at the border counts its zeros.
  block = found['stage1_block1']
  assert block.shape == (2, 4, 4, 36)
  close(block[..., :12], found['stage1_block1/norm3'])
  close(block[..., 12:], pooled)


def test_later_blocks_of_version_1_add_to_their_input():
  found = applied('shufflenetv1').outputs
  inputs = np.maximum(found['stage1_block1'], 0)
  close(found['stage1_block2'], inputs + found['stage1_block2/norm3'])


def test_version_1_shuffles_before_its_depthwise_convolution():
  variables, found = applied('shufflenetv1').variables, applied('shufflenetv1').outputs
  activated = np.maximum(found['stage2_block1/norm1'], 0)
  assert activated.shape == (2, 4, 4, 6)
  conv = layers.conv(6, stride=2, groups=6)
  kernel = variables['params']['stage2_block1']['depthwise']['kernel']
  expected = conv.apply({'params': {'kernel': kernel}}, activated[..., [0, 2, 4, 1, 3, 5]])
  close(found['stage2_block1/depthwise'], expected)


def test_version_1_has_groups_except_where_it_reads_the_stem():
  params = shapes('shufflenetv1')[1]['params']
  kernels = {(block, layer): params[block][layer]['kernel'].shape[2:]
             for block in ('stage1_block1', 'stage1_block2', 'stage2_block1')
             for layer in ('conv1', 'depthwise', 'conv3')}
  assert kernels == {
      ('stage1_block1', 'conv1'): (24, 54), ('stage1_block1', 'depthwise'): (1, 54),
      ('stage1_block1', 'conv3'): (18, 216),
      ('stage1_block2', 'conv1'): (80, 60), ('stage1_block2', 'depthwise'): (1, 60),
      ('stage1_block2', 'conv3'): (20, 240),
      ('stage2_block1', 'conv1'): (80, 60), ('stage2_block1', 'depthwise'): (1, 60),
      ('stage2_block1', 'conv3'): (20, 240)}


@pytest.mark.parametrize(('block', 'even'), [('stage1_block1', 'left_conv_norm'),
                                             ('stage1_block2', None)])
def test_version_2_deals_what_passes_and_what_it_convolves_in_turn(block, even):
  found = applied('shufflenetv2').outputs
  before = found[block]
  close(before[..., 1::2], found[f'{block}/conv2_norm'])
  passed = found[f'{block}/{even}'] if even else np.maximum(found['stage1_block1'], 0)[..., :2]
  close(before[..., ::2], passed)


@pytest.mark.slow
def test_the_taps_of_mobilenet_are_linear_and_their_own_preactivations():
  found = applied('mobilenetv2')
  assert all(feature.min() < 0 for feature in found.taps.values())
  close(found.preactivations, found.taps)


def test_mobilenet_adds_the_input_where_the_shape_is_kept():
  found = applied('mobilenetv2').outputs
  inputs, branch = found['group3_block1'], found['group3_block2/projection_norm']
  close(found['group3_block2'], inputs + branch)
  close(found['group2_block1'], found['group2_block1/projection_norm'])


def test_mobilenet_taps_the_groups_that_repdistiller_compares():
  found = applied('mobilenetv2')
  last = ('group2_block2', 'group3_block3', 'group5_block3', 'group7_block1')
  for i, block in enumerate(last, 1):
    np.testing.assert_array_equal(found.taps[f'stage{i}'], found.outputs[block])
