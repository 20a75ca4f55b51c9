"""The models: their sizes, taps, numerics against PyTorch's rules, and the registry's errors."""
import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, models
from kdih.models import layers

# Parameters at 100 classes: PAPER.md, section 2, has resnet8, 14, 20, 110, 18, 34, vgg11 and
# wrn_28_2. The others were counted on RepDistiller's model files, layer by layer, without torch.
PARAMETERS = {
    'resnet8': 83_892, 'resnet14': 181_108, 'resnet20': 278_324, 'resnet32': 472_756,
    'resnet44': 667_188, 'resnet56': 861_620, 'resnet110': 1_736_564,
    'resnet8x4': 1_233_540, 'resnet32x4': 7_433_860,
    'resnet18': 11_220_132, 'resnet34': 21_328_292,
    'wrn_16_1': 180_916, 'wrn_16_2': 703_284, 'wrn_28_2': 1_481_252, 'wrn_40_1': 569_780,
    'wrn_40_2': 2_255_156,
    'vgg8': 3_965_028, 'vgg11': 9_277_284, 'vgg13': 9_462_180, 'vgg16': 14_774_436,
    'vgg19': 20_086_692,
}
# Taps at 32x32, (height, width, channels).
CIFAR = ((32, 32, 16), (16, 16, 32), (8, 8, 64))
CIFAR_X4 = ((32, 32, 64), (16, 16, 128), (8, 8, 256))
WIDE_2 = ((32, 32, 32), (16, 16, 64), (8, 8, 128))
FOUR_STAGES = ((32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512))
VGG = ((16, 16, 128), (8, 8, 256), (4, 4, 512), (4, 4, 512))
TAPS = {
    'resnet8': CIFAR, 'resnet14': CIFAR, 'resnet20': CIFAR, 'resnet110': CIFAR,
    'resnet8x4': CIFAR_X4, 'resnet18': FOUR_STAGES, 'resnet34': FOUR_STAGES,
    'wrn_16_1': CIFAR, 'wrn_28_2': WIDE_2, 'vgg8': VGG, 'vgg13': VGG,
    'vgg11': ((16, 16, 64), (16, 16, 128), (8, 8, 256), (1, 1, 512)),
}
FAMILIES = ('resnet8', 'resnet18', 'wrn_16_1', 'vgg8', 'vgg11')


@functools.cache
def shapes(name: str, size: int = 32, channels: int = 3, classes: int = 100,
           dtype: Any = jnp.float32) -> tuple[Any, Any]:
  """The shapes of a model's logits and variables, taps included, for a batch of 2."""
  model = models.create(name, classes, dtype=dtype)
  run = functools.partial(model.init_with_output, train=False, mutable=True)
  images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  return jax.eval_shape(run, jax.random.key(0), images)


def tap_shapes(name: str, *size: int) -> tuple[tuple[int, ...], ...]:
  taps = shapes(name, *size)[1]['intermediates']
  assert sorted(taps) == [f'stage{i}' for i in range(1, len(taps) + 1)]
  return tuple(taps[key].shape[1:] for key in sorted(taps))


def tiny_resnet(axis_name: str | None = None) -> nn.Module:
  return models.create('resnet8', 3, axis_name=axis_name, stage_sizes=(1,), stage_widths=(2,),
                       stem_width=2)


def random_images(batch: int, size: int, channels: int = 3) -> np.ndarray:
  images = np.random.default_rng(1).normal(size=(batch, size, size, channels))
  return images.astype(np.float32)


def random_variables(model: nn.Module, images: np.ndarray) -> Any:
  """Kernels of either sign, the rest positive; far quicker than compiling the model's own init."""
  random = np.random.default_rng(0)

  def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return random.uniform(-1 if leaf.ndim > 1 else 0.5, 1, leaf.shape).astype(np.float32)

  init = functools.partial(model.init, train=False)
  return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0), images))


def close(actual: Any, expected: Any) -> None:
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
               actual, expected)


def test_every_name_has_a_known_size():
  assert models.names() == tuple(sorted(PARAMETERS))


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_count(name):
  params = shapes(name)[1]['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.parametrize('name', TAPS)
def test_taps(name):
  assert tap_shapes(name) == TAPS[name]


@pytest.mark.parametrize('size', [8, 16, 28, 32, 64])
@pytest.mark.parametrize('name', FAMILIES)
def test_any_image(name, size):
  logits, variables = shapes(name, size, channels=1, classes=7)
  assert logits.shape == (2, 7)
  first = variables['intermediates']['stage1'].shape
  assert first[1] == {'vgg8': size // 4 * 2, 'vgg11': size // 2}.get(name, size)


@pytest.mark.parametrize(('name', 'size', 'last'), [
    ('resnet8', 28, (7, 7, 64)), ('resnet18', 28, (4, 4, 512)), ('wrn_16_1', 64, (16, 16, 64)),
    ('vgg8', 64, (4, 4, 512)), ('vgg8', 8, (1, 1, 512)), ('vgg11', 64, (2, 2, 512)),
    ('vgg11', 28, (1, 1, 512))])
def test_last_tap_of_other_sizes(name, size, last):
  assert tap_shapes(name, size)[-1] == last


def test_logits_are_the_classifier_on_the_mean_of_the_last_tap():
  model, images = tiny_resnet(), random_images(2, 6)
  variables = random_variables(model, images)
  assert set(variables) == {'params', 'batch_stats'}
  logits, taps = model.apply(variables, images, train=False, mutable=['intermediates'])
  classifier = variables['params']['classifier']
  pooled = taps['intermediates']['stage1'].mean((1, 2))
  close(logits, pooled @ classifier['kernel'] + classifier['bias'][None])


@pytest.mark.parametrize(('name', 'smaller', 'rectified'), [
    ('resnet8', {'stage_sizes': (1,), 'stage_widths': (2,), 'stem_width': 2}, True),
    ('vgg8', {'layout': (4, 'pool', 8, 'tap')}, True), ('wrn_16_1', {'depth': 10}, False)])
def test_taps_are_after_the_relu_but_before_it_in_wide_resnets(name, smaller, rectified):
  model, images = models.create(name, 3, **smaller), random_images(2, 4)
  variables = random_variables(model, images)
  apply = jax.jit(functools.partial(model.apply, train=True, mutable=True))
  _, updates = apply(variables, images)
  assert (updates['intermediates']['stage1'].min() >= 0) == rectified


@pytest.mark.parametrize('name', FAMILIES)
def test_bfloat16_computes_in_it_and_keeps_float32(name):
  with jax.numpy_dtype_promotion('standard'):  # Flax's own layers rely on it.
    logits, variables = shapes(name, 32, dtype=jnp.bfloat16)
  assert logits.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(variables['intermediates'])} == {jnp.dtype('bfloat16')}
  kept = jax.tree.leaves([variables['params'], variables['batch_stats']])
  assert {x.dtype for x in kept} == {jnp.dtype('float32')}


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


def test_initialisation_has_the_spread_of_pytorch():
  conv = layers.conv(128).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']
  assert set(conv) == {'kernel'}
  assert conv['kernel'].std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
  dense = layers.dense(64, 1000).init(jax.random.key(0), jnp.zeros((1, 64)))['params']
  for leaf in dense.values():
    assert leaf.min() == pytest.approx(-1 / 8, rel=0.02)
    assert leaf.max() == pytest.approx(1 / 8, rel=0.02)


def test_batch_norm_has_the_constants_of_pytorch():
  images = 3 + 2 * random_images(4, 4, 2)
  norm = layers.batch_norm(train=True)
  variables = norm.init(jax.random.key(0), images)
  output, updates = norm.apply(variables, images, mutable=['batch_stats'])
  mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
  close(output, (images - mean[None, None, None]) / jnp.sqrt(variance + 1e-5)[None, None, None])
  close(updates['batch_stats'], {'mean': 0.1 * mean, 'var': 0.9 + 0.1 * variance})


def test_synchronised_statistics_are_those_of_the_whole_batch():
  images = random_images(4, 6)
  variables = random_variables(tiny_resnet(), images)

  def train_step(model, images):
    return model.apply(variables, images, train=True, mutable=['batch_stats'])[1]

  whole = train_step(tiny_resnet(), images)
  sharded = images.reshape(2, 2, 6, 6, 3)
  synchronised = jax.vmap(functools.partial(train_step, tiny_resnet('batch')), axis_name='batch',
                          out_axes=None)(sharded)
  close(synchronised, whole)


@pytest.mark.parametrize('name', FAMILIES)
def test_every_batch_norm_gets_the_axis(name):
  model = models.create(name, 3, axis_name='batch')
  axes = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm):
      axes.append(context.module.axis_name)
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0),
                   jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
  assert set(axes) == {'batch'}


def test_only_training_moves_the_statistics():
  model, images = tiny_resnet(), random_images(2, 6)
  variables = random_variables(model, images)
  _, kept = model.apply(variables, images, train=False, mutable=['batch_stats'])
  close(kept['batch_stats'], variables['batch_stats'])
  _, moved = model.apply(variables, images, train=True, mutable=['batch_stats'])
  for before, after in zip(jax.tree.leaves(kept), jax.tree.leaves(moved), strict=True):
    assert np.all(before != after)
  with pytest.raises(flax.errors.FlaxError, match='batch_stats'):
    model.apply(variables, images, train=True)


@pytest.fixture
def user_nets(tmp_path, monkeypatch):
  """A module of the user's, importable as `user_nets`."""
  (tmp_path / 'user_nets.py').write_text(
      'import flax.linen as nn\n'
      'class Plain(nn.Module):\n'
      '  num_classes: int\n'
      '  width: int = 4\n'
      '  @nn.compact\n'
      '  def __call__(self, images, train):\n'
      '    return nn.Dense(self.num_classes)(images.mean((1, 2)))\n'
      'class Full(Plain):\n'
      '  dtype: object = None\n'
      '  axis_name: str = None\n'
      'class NotAModule:\n'
      '  pass\n')
  (tmp_path / 'needs_more.py').write_text('import no_such_package\n')
  monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures('user_nets')
def test_import_path():
  plain = models.create('user_nets:Plain', 7, dtype=jnp.bfloat16, axis_name='batch', width=8)
  assert (plain.num_classes, plain.width) == (7, 8)
  assert plain.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 1)), True)[0].shape == (2, 7)
  full = models.create('user_nets:Full', 7, dtype=jnp.bfloat16, axis_name='batch')
  assert (full.dtype, full.axis_name) == (jnp.bfloat16, 'batch')


@pytest.mark.usefixtures('user_nets')
@pytest.mark.parametrize(('name', 'kwargs', 'message'), [
    ('resnet21', {}, "unknown 'resnet21'; did you mean 'resnet"),
    ('resnet20', {'widht': 3}, "'resnet20' got an unexpected keyword argument 'widht'; its fields"),
    ('no_such_package:Net', {}, "cannot import 'no_such_package' (No module named"),
    ('needs_more:Net', {}, "cannot import 'needs_more' (No module named 'no_such_package')"),
    (':Net', {}, "cannot import '' ("),
    ('.nets:Net', {}, "cannot import '.nets' ("),
    ('user_nets:Plane', {}, "'user_nets' has no attribute 'Plane'"),
    ('user_nets:NotAModule', {}, "'user_nets:NotAModule' is not a flax.linen.Module class"),
    ('user_nets:nn', {}, "'user_nets:nn' is not a flax.linen.Module class"),
    ('user_nets:Plain', {'depth': 2},
     "got an unexpected keyword argument 'depth'; its fields: num_classes, width"),
])
def test_errors_are_one_line_that_begins_with_the_setting(name, kwargs, message):
  with pytest.raises(errors.ConfigError) as raised:
    models.create(name, 10, setting='student.model', **kwargs)
  text = str(raised.value)
  assert text.startswith('student.model: ')
  assert message in text
  assert '\n' not in text
