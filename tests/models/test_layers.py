"""The layers: numerics against PyTorch's rules."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.models import layers
from tests.helpers.model_checks import close, random_images


@pytest.mark.parametrize('size', [5, 6])
def test_strided_convolution_pads_both_sides_as_pytorch(size):
  image = random_images(1, size, 2)
  conv = layers.conv(3, stride=2)
  variables = conv.init(jax.random.key(0), image)
  kernel = np.asarray(variables['params']['kernel'])
  padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
  expected = [[np.tensordot(padded[i:i + 3, j:j + 3], kernel, 3) for j in range(0, size, 2)]
              for i in range(0, size, 2)]
  close(conv.apply(variables, image)[0], np.array(expected))


def test_each_group_of_a_convolution_reads_its_own_channels():
  image = random_images(1, 4, 6)
  conv = layers.conv(4, 1, groups=2)
  variables = conv.init(jax.random.key(0), image)
  kernel = np.asarray(variables['params']['kernel'])[0, 0]
  assert kernel.shape == (3, 4)
  expected = [image[..., :3] @ kernel[:, :2], image[..., 3:] @ kernel[:, 2:]]
  close(conv.apply(variables, image), np.concatenate(expected, axis=-1))


def test_initialisation_has_the_spread_of_pytorch():
  conv = layers.conv(128).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']
  assert set(conv) == {'kernel'}
  assert conv['kernel'].std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
  grouped = layers.conv(128, groups=32).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']
  assert grouped['kernel'].std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
  dense = layers.dense(64, 1000).init(jax.random.key(0), jnp.zeros((1, 64)))['params']
  for leaf in dense.values():
    assert leaf.min() == pytest.approx(-1 / 8, rel=0.02)
    assert leaf.max() == pytest.approx(1 / 8, rel=0.02)


def test_the_default_initialisation_of_pytorch_is_uniform_by_the_inputs_of_a_group():
  conv = layers.conv(256, groups=4, kernel_init=layers.PYTORCH_DEFAULT)
  kernel = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))['params']['kernel']
  assert kernel.min() == pytest.approx(-1 / 6, rel=0.02)  # 9 * 16 / 4 inputs.
  assert kernel.max() == pytest.approx(1 / 6, rel=0.02)
  assert kernel.std() == pytest.approx(1 / 6 / 3**0.5, rel=0.02)


def test_batch_norm_has_the_constants_of_pytorch():
  images = 3 + 2 * random_images(4, 4, 2)
  norm = layers.batch_norm(train=True)
  variables = norm.init(jax.random.key(0), images)
  output, updates = norm.apply(variables, images, mutable=['batch_stats'])
  mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
  close(output, (images - mean[None, None, None]) / jnp.sqrt(variance + 1e-5)[None, None, None])
  close(updates['batch_stats'], {'mean': 0.1 * mean, 'var': 0.9 + 0.1 * variance})


class Tapped(nn.Module):
  @nn.compact
  def __call__(self, x):
    layers.tap(self, 'raw', x)
    return layers.tap(self, 'stage1', nn.relu(x), before=x)


def test_a_tap_exposes_the_arrays_themselves():
  x = jnp.array([-1.0, 2.0])
  found, written = Tapped().apply({}, x, mutable=True)
  assert set(written) == {'intermediates', 'preactivations'}
  close(written['intermediates'], {'raw': x, 'stage1': jnp.array([0.0, 2.0])})
  close(written['preactivations'], {'stage1': x})
  close(found, written['intermediates']['stage1'])
