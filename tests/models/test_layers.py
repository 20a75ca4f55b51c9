"""The layers: numerics against PyTorch's rules."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.models import layers
from tests.helpers.model_checks import close, random_images
from tests.helpers.slow import slow


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


@pytest.mark.slow
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


def trained_norm(images, axis_name=None):
  """What a batch norm makes of images in training, and the statistics of the batch."""
  norm = layers.batch_norm(train=True, axis_name=axis_name)
  shape = (images.shape[-1],)
  variables = {'params': {'scale': jnp.ones(shape), 'bias': jnp.zeros(shape)},
               'batch_stats': {'mean': jnp.zeros(shape), 'var': jnp.ones(shape)}}
  output, updates = norm.apply(variables, images, mutable=['batch_stats'])
  stats = updates['batch_stats']
  return output, 10 * stats['mean'], 10 * stats['var'] - 9


# PyTorch's own error, on the same images, is 1e-5, 7e-5, 8e-4, 3e-3 for means of 10 to 3000.
@pytest.mark.parametrize('mean', [
    1000, *(slow(mean) for mean in (0, 10, 100, 3000))])
@pytest.mark.parametrize('devices', [1, 4])
def test_batch_norm_of_a_large_mean_is_as_exact_as_pytorch(mean, devices):
  rng = np.random.default_rng(0)
  images = rng.normal(mean, 1, (64, 8, 8, 16)).astype(np.float32)
  weights = rng.normal(size=images.shape).astype(np.float32)

  def run(images, weights):
    output, pull = jax.vjp(lambda x: trained_norm(x, 'batch')[0], images)
    return output, pull(weights)[0], *trained_norm(images, 'batch')[1:]

  parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, weights)]
  output, gradient, *stats = jax.vmap(run, axis_name='batch')(*parts)
  x, g = images.astype(np.float64), weights.astype(np.float64)
  axes = (0, 1, 2)
  deviation = np.sqrt(x.var(axes) + 1e-5)
  right = (x - x.mean(axes)) / deviation
  slope = (g - g.mean(axes) - right * (g * right).mean(axes)) / deviation
  # The mean itself is a sum of large numbers, rounded; that shifts the output.
  tolerance = 3e-6 + 1e-6 * mean
  np.testing.assert_allclose(output.reshape(x.shape), right, atol=tolerance)
  np.testing.assert_allclose(gradient.reshape(x.shape), slope, atol=tolerance)
  for found, expected, allowed in zip(stats, (x.mean(axes), x.var(axes)), (tolerance, 1e-5),
                                      strict=True):
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=allowed)


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
