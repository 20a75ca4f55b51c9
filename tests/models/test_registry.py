"""The models: the registry and its errors, and what holds for all families."""
import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors
from kdih.cohort import head_modules
from kdih.models import registry
from kdih.models.taps import EMBEDDING
from tests.helpers.model_checks import (
  FAMILIES,
  NAMES,
  NORMALISED,
  applied,
  close,
  random_images,
  random_variables,
  shapes,
  smaller,
  tap_shapes,
)
from tests.helpers.slow import slow

# Parameters at 100 classes: wrn_28_2 is that of the DIH paper's code; all others were counted on
# the model files of RepDistiller (github.com/HobbitLong/RepDistiller) and of mdistiller
# (github.com/megvii-research/mdistiller), which agree (vit_tiny: test_vit.py).
PARAMETERS = {
    'resnet8': 83_892, 'resnet14': 181_108, 'resnet20': 278_324, 'resnet32': 472_756,
    'resnet44': 667_188, 'resnet56': 861_620, 'resnet110': 1_736_564,
    'resnet8x4': 1_233_540, 'resnet32x4': 7_433_860,
    'resnet18': 11_220_132, 'resnet34': 21_328_292,
    'wrn_16_1': 180_916, 'wrn_16_2': 703_284, 'wrn_28_2': 1_481_252, 'wrn_40_1': 569_780,
    'wrn_40_2': 2_255_156,
    'resnet50': 23_705_252, 'mobilenetv2': 812_836, 'shufflenetv1': 949_258,
    'shufflenetv2': 1_355_528, 'vit_tiny': 5_380_132,
    'vgg8': 3_965_028, 'vgg11': 9_277_284, 'vgg13': 9_462_180, 'vgg16': 14_774_436,
    'vgg19': 20_086_692,
}
# Those of torchvision at 1000 classes, as its documentation states them.
IMAGENET = {'resnet18_imagenet': 11_689_512, 'resnet34_imagenet': 21_797_672,
            'resnet50_imagenet': 25_557_032}
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
    'resnet50': ((32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)),
    'mobilenetv2': ((16, 16, 12), (8, 8, 16), (4, 4, 48), (2, 2, 160)),
    'shufflenetv1': ((16, 16, 240), (8, 8, 480), (4, 4, 960)),
    'shufflenetv2': ((16, 16, 116), (8, 8, 232), (4, 4, 464)),
    'vit_tiny': ((8, 8, 192),) * 12,
    'vgg11': ((16, 16, 64), (16, 16, 128), (8, 8, 256), (1, 1, 512)),
}
# Height and width of the first tap, as a part of the image's.
FIRST_TAP = {'vgg8': 2, 'vgg11': 2, 'mobilenetv2': 2, 'shufflenetv1': 2, 'shufflenetv2': 2,
             'resnet18_imagenet': 4, 'vit_tiny': 4}


def count(variables: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_every_name_has_a_known_size():
  assert registry.names() == tuple(sorted(PARAMETERS | IMAGENET))


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_count(name):
  assert count(shapes(name)[1]) == PARAMETERS[name]


@pytest.mark.parametrize('name', IMAGENET)
def test_parameter_count_of_torchvision(name):
  assert count(shapes(name, 64, classes=1000)[1]) == IMAGENET[name]


@pytest.mark.parametrize('name', TAPS)
def test_taps(name):
  assert tap_shapes(name) == TAPS[name]


@pytest.mark.parametrize('size', [
    8, 28, *(slow(size) for size in (16, 32, 64))])
@pytest.mark.parametrize('name', FAMILIES)
def test_any_image(name, size):
  logits, variables = shapes(name, size, channels=1, classes=7)
  assert logits.shape == (2, 7)
  first = variables['intermediates']['stage1'].shape
  assert first[1] == {1: size, 2: size // 4 * 2 if name == 'vgg8' else size // 2, 4: size // 4}[
      FIRST_TAP.get(name, 1)]


@pytest.mark.parametrize(('name', 'size', 'last'), [
    ('resnet8', 28, (7, 7, 64)), ('resnet18', 28, (4, 4, 512)), ('wrn_16_1', 64, (16, 16, 64)),
    ('vgg8', 64, (4, 4, 512)), ('vgg8', 8, (1, 1, 512)), ('vgg11', 64, (2, 2, 512)),
    ('resnet50', 64, (8, 8, 2048)), ('resnet50_imagenet', 64, (2, 2, 2048)),
    ('resnet18_imagenet', 224, (7, 7, 512)), ('resnet34_imagenet', 50, (2, 2, 512)),
    ('mobilenetv2', 64, (4, 4, 160)), ('shufflenetv1', 64, (8, 8, 960)),
    ('shufflenetv2', 28, (4, 4, 464)), ('vit_tiny', 64, (16, 16, 192)),
    ('vgg11', 28, (1, 1, 512))])
def test_last_tap_of_other_sizes(name, size, last):
  assert tap_shapes(name, size)[-1] == last


@pytest.mark.parametrize('name', NAMES)
def test_the_size_of_the_batch_may_be_unknown(name):
  """As in an exported model, which takes batches of any size."""
  batch, = jax.export.symbolic_shape('batch')
  run = functools.partial(smaller(name).init_with_output, train=True, mutable=True)
  logits, variables = jax.eval_shape(
      run, jax.random.key(0), jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32))
  assert logits.shape == (batch, 3)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(variables['intermediates'])} == {batch}


@pytest.mark.parametrize('name', FAMILIES)
def test_the_classifier_reads_the_embedding(name):
  found = applied(name)
  classifier = found.variables['params']['classifier']
  assert found.embedding.shape == (2, len(classifier['kernel']))
  close(found.logits, found.embedding @ classifier['kernel'] + classifier['bias'][None])


@pytest.mark.parametrize('name', FAMILIES)
def test_initial_variables_hold_nothing_that_is_sown(name):
  init = functools.partial(smaller(name).init, train=False)
  found = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
  assert set(found) == ({'params'} if name == 'vit_tiny' else {'params', 'batch_stats'})


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', [
    'resnet8', 'resnet18_imagenet', 'vgg8', 'vgg11', *(
        slow(name) for name in ('resnet50', 'shufflenetv1', 'shufflenetv2'))])
def test_relu_of_the_preactivation_is_the_tap(name, train):
  found = applied(name, train)
  assert set(found.preactivations) == set(found.taps)
  for tap, feature in found.taps.items():
    before = found.preactivations[tap]
    assert before.min() < 0
    np.testing.assert_array_equal(np.maximum(before, 0), feature)


@pytest.mark.parametrize('name', FAMILIES)
def test_heads_stand_on_every_tap(name):
  features = applied(name).taps
  heads = head_modules.Heads(5, 'gap')
  logits, variables = jax.eval_shape(heads.init_with_output, jax.random.key(0), features)
  assert {tap: z.shape for tap, z in logits.items()} == dict.fromkeys(features, (2, 5))
  for tap, feature in features.items():
    assert variables['params'][tap]['kernel'].shape == (feature.shape[-1], 5)


@pytest.mark.parametrize('name', FAMILIES)
def test_bfloat16_computes_in_it_and_keeps_float32(name):
  with jax.numpy_dtype_promotion('standard'):  # Flax's own layers rely on it.
    logits, variables = shapes(name, 32, dtype=jnp.bfloat16)
  assert logits.dtype == jnp.float32
  assert {tap for tap, x in variables['intermediates'].items() if x.dtype == jnp.float32
          } == {EMBEDDING}
  assert variables['intermediates']['stage1'].dtype == jnp.bfloat16
  kept = jax.tree.leaves([variables['params'], variables.get('batch_stats')])
  assert {x.dtype for x in kept} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', NORMALISED)
def test_every_batch_norm_gets_the_axis(name):
  model = registry.create(name, 3, axis_name='batch')
  axes = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm):
      axes.append(context.module.axis_name)
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0),
                   jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
  assert set(axes) == {'batch'}


@pytest.mark.parametrize('name', NORMALISED)
def test_only_training_moves_the_statistics(name):
  kept, moved = applied(name).statistics, applied(name, train=True).statistics
  close(kept, applied(name).variables['batch_stats'])
  for before, after in zip(jax.tree.leaves(kept), jax.tree.leaves(moved), strict=True):
    assert np.all(before != after)


def test_training_without_mutable_statistics_is_refused():
  model, images = smaller('resnet8'), random_images(2, 6)
  variables = random_variables(model, images)
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
  plain = registry.create('user_nets:Plain', 7, dtype=jnp.bfloat16, axis_name='batch', width=8)
  assert (plain.num_classes, plain.width) == (7, 8)
  assert plain.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 1)), True)[0].shape == (2, 7)
  full = registry.create('user_nets:Full', 7, dtype=jnp.bfloat16, axis_name='batch')
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
    registry.create(name, 10, setting='student.model', **kwargs)
  text = str(raised.value)
  assert text.startswith('student.model: ')
  assert message in text
  assert '\n' not in text
