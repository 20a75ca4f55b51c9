"""The vision transformer: its numerics in numpy, its sizes and its errors."""
import math

import jax
import numpy as np
import pytest

from kdih import errors
from kdih.config import fields
from kdih.data.spec import DataSpec
from kdih.models import model_checks, registry, taps
from kdih.phases import networks
from tests.helpers.model_checks import SMALLER, applied, close, random_images, shapes


def parameters(patch, side, classes, width=192, depth=12):
  """Layer by layer, from the shapes of timm's `deit_tiny_patch16_224`."""
  patches, tokens = (patch * patch * 3 + 1) * width, (side // patch) ** 2 + 1
  attention = (width + 1) * 3 * width + (width + 1) * width
  mlp = (width + 1) * 4 * width + (4 * width + 1) * width
  return (patches + width + tokens * width + depth * (attention + mlp + 4 * width)
          + 2 * width + (width + 1) * classes)


@pytest.mark.parametrize(('patch', 'side', 'classes', 'published'), [
    (16, 224, 1000, 5_717_416),  # DeiT's and timm's.
    (4, 32, 100, 5_380_132), (8, 64, 200, None)])
def test_parameter_count(patch, side, classes, published):
  model = registry.create('vit_tiny', classes, patch_size=patch)
  found = taps.abstract_variables(model, (side, side, 3))
  size = sum(leaf.size for leaf in jax.tree.leaves(found))
  assert size == parameters(patch, side, classes)
  assert published in (None, size)


def layer_norm(x, params):
  spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return (x - x.mean(-1, keepdims=True)) / spread * params['scale'] + params['bias']


def attention(x, params):
  """Softmax of the scaled products, head by head."""
  query, key, value = (np.einsum('btw,whd->bhtd', x, params[name]['kernel'])
                       + params[name]['bias'][:, None] for name in ('query', 'key', 'value'))
  scores = np.exp(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]))
  mixed = scores / scores.sum(-1, keepdims=True) @ value
  return np.einsum('bhtd,hdw->btw', mixed, params['out']['kernel']) + params['out']['bias']


def gelu(x):
  return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tokens(images, params):
  """Class token, then the patches row by row."""
  rows = [images[:, i:i + 4, j:j + 4].reshape(2, -1) for i in (0, 4) for j in (0, 4)]
  embedded = np.stack(rows, 1) @ params['patches']['kernel'] + params['patches']['bias']
  first = np.broadcast_to(params['class_token'], (2, 1, embedded.shape[-1]))
  return np.concatenate([first, embedded], 1) + params['positions']


def test_the_transformer_computes_what_its_formulas_say():
  found = applied('vit_tiny')
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64),
                        found.variables['params'])
  x = tokens(random_images(2, 8).astype(np.float64), params)
  for i in (1, 2):
    block = params[f'block{i}']
    x = x + attention(layer_norm(x, block['norm1']), block['attention'])
    hidden = layer_norm(x, block['norm2']) @ block['mlp1']['kernel'] + block['mlp1']['bias']
    x = x + gelu(hidden) @ block['mlp2']['kernel'] + block['mlp2']['bias']
    np.testing.assert_allclose(found.taps[f'stage{i}'], x[:, 1:].reshape(2, 2, 2, -1),
                               rtol=1e-4, atol=1e-4)
  x = layer_norm(x[:, 0], params['final_norm'])
  np.testing.assert_allclose(found.embedding, x, rtol=1e-4, atol=1e-4)
  expected = x @ params['classifier']['kernel'] + params['classifier']['bias']
  np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)


def test_it_has_no_preactivations_and_nothing_that_training_moves():
  evaluated, trained = applied('vit_tiny'), applied('vit_tiny', train=True)
  assert not trained.preactivations
  assert trained.statistics is None
  close(evaluated.logits, trained.logits)


def test_all_taps_are_found_in_order():
  found = taps.choose_taps(registry.create('vit_tiny', 10), (32, 32, 3), ())
  assert list(found.items()) == [(f'stage{i}', (8, 8, 192)) for i in range(1, 13)]


@pytest.mark.parametrize(('roles', 'method', 'reason'), [
    (('teacher', 'student'), 'at', None), (('student', 'teacher'), 'mhkd', None),
    (('teacher', 'student'), 'ab', "the teacher does not sow the preactivation of 's"),
    (('student', 'teacher'), 'reviewkd', "the student does not sow the preactivation of ")])
def test_methods_take_its_taps_for_maps_or_say_why_not(roles, method, reason):
  config = fields.base()
  ours, other = roles
  config[ours].update(name='vit_tiny', kwargs=SMALLER['vit_tiny'])
  config[other].name = 'tests.helpers.tiny_nets:TinyNet'
  config.student.methods = (method,)
  spec = DataSpec('made', (8, 8, 3), 5)
  if reason is None:
    built = networks.build(config, spec)
    assert getattr(built, f'{ours}_taps') == {'stage1': (2, 2, 6), 'stage2': (2, 2, 6)}
    return
  with pytest.raises(errors.UnfitError) as raised:
    networks.build(config, spec)
  assert str(raised.value).startswith(
      f'config.methods.{method}: does not fit the teacher {config.teacher.name} and the student '
      f'{config.student.name}: {reason}')


@pytest.mark.parametrize(('height', 'width'), [(30, 32), (32, 30)])
def test_images_that_do_not_fit_the_patches_are_refused(height, width):
  with pytest.raises(errors.ConfigError) as raised:
    model_checks.check_evaluation(
        registry.create('vit_tiny', 10), (height, width, 3), 10, 'config.student.name')
  assert str(raised.value) == (
      f'config.student.name: cannot be applied to {height}x{width}x3 images: height {height} and '
      f'width {width} are not both multiples of patch_size, 4')


@pytest.mark.slow
def test_an_image_need_not_be_square():
  model = registry.create('vit_tiny', 10)
  assert taps.sown(model, (8, 16, 1))['stage12'] == (2, 4, 192)


def test_the_tap_is_a_map_of_the_patches_alone():
  variables = shapes('vit_tiny', 64)[1]
  assert variables['params']['positions'].shape == (1, 257, 192)
  assert variables['intermediates']['stage12'].shape == (2, 16, 16, 192)
