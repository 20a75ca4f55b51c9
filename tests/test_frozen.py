"""The frozen teacher, folded: it says the same, with fewer batch norms."""
import functools

import frozen_nets
import jax
import numpy as np
import pytest
from model_checks import FAMILIES, random_images, random_variables, smaller

from kdih import frozen, taps

# The batch norms of each family's small model, and those before a convolution, which remain.
NORMS = {'resnet8': (3, 0), 'resnet50': (12, 0), 'resnet18_imagenet': (3, 0), 'wrn_16_1': (7, 4),
         'vgg8': (2, 0), 'vgg11': (2, 0), 'mobilenetv2': (53, 0), 'shufflenetv1': (10, 0),
         'shufflenetv2': (15, 0), 'vit_tiny': (0, 0)}
DEEP = ('resnet50', 'mobilenetv2', 'shufflenetv1', 'shufflenetv2')
SIZE = 8


def variables_of(model, images):
  variables = random_variables(model, images)
  return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}


def says(model, images, names, variables):
  output, _ = taps.observe(model, variables, images, names)
  return output.logits, output.features, output.preactivations, output.embedding


def norms_in(call, variables):
  """Batch norms in what is computed; a layer norm has a mean to take, they have not."""
  def count(jaxpr):
    inner = (value.jaxpr if hasattr(value, 'jaxpr') else value for equation in jaxpr.eqns
             for value in equation.params.values())
    return (sum(equation.primitive.name == 'rsqrt' for equation in jaxpr.eqns)
            + sum(count(jaxpr) for jaxpr in inner if hasattr(jaxpr, 'eqns')))
  return count(jax.make_jaxpr(call)(variables).jaxpr)


def check(model, names, tolerance=1e-4, size=SIZE):
  """Asserts that folding changes nothing; the numbers of batch norms before and after."""
  images = random_images(2, size)
  variables = variables_of(model, images)
  before = jax.tree.map(np.copy, variables)
  folded = frozen.fold(model, variables, names, (size, size, 3))
  jax.tree.map(np.testing.assert_array_equal, variables, before)
  call = functools.partial(says, model, images, names)
  quick = jax.jit(call, compiler_options={'xla_backend_optimization_level': 0})
  expected, found = quick(variables), quick(folded)
  for right, value in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    scale = np.abs(right).max()
    np.testing.assert_allclose(value, right, rtol=tolerance, atol=tolerance * scale)
    assert scale > 1e-3
  return norms_in(call, variables), norms_in(call, folded)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in FAMILIES])
def test_every_family_says_the_same_with_the_norms_behind_its_convolutions_folded(name):
  model = smaller(name)
  normed = 5 if name == 'vit_tiny' else 0  # Its layer norms.
  before, after = NORMS[name]
  names = tuple(taps.sown(model, (SIZE, SIZE, 3)))
  assert check(model, names) == (before + normed, after + normed)


@pytest.mark.parametrize('net', frozen_nets.COUNTS)
def test_a_norm_is_folded_only_where_it_alone_reads_a_layer(net):
  tolerance = 2e-2 if net is frozen_nets.Cast else 1e-4
  assert check(net(), ('stage1',), tolerance, size=4) == frozen_nets.COUNTS[net]


@pytest.mark.parametrize('names, remain', [
    (('Conv_0',), 1), (('BatchNorm_0',), 0), (('stage1',), 0), ((), 0)])
def test_the_output_of_a_layer_that_is_a_tap_stays(names, remain):
  assert check(frozen_nets.Plain(), names) == (1, remain)


def test_the_fold_is_scale_over_the_root_of_the_variance():
  variables = {
      'params': {'Conv_0': {'kernel': np.full((3, 3, 3, 4), 2, np.float32)},
                 'BatchNorm_0': {'scale': np.full(4, 3, np.float32),
                                 'bias': np.full(4, 5, np.float32)},
                 'Dense_0': {'kernel': np.ones((64, 3), np.float32),
                             'bias': np.ones(3, np.float32)}},
      'batch_stats': {'BatchNorm_0': {'mean': np.full(4, 7, np.float32),
                                      'var': np.full(4, 4 - 1e-5, np.float32)}}}
  folded = frozen.fold(frozen_nets.Plain(), variables, (), (4, 4, 3))
  np.testing.assert_allclose(folded['params']['Conv_0']['kernel'], np.full((3, 3, 3, 4), 3.0))
  np.testing.assert_allclose(folded[taps.FOLDED]['BatchNorm_0']['shift'], np.full(4, 5 - 10.5))
  np.testing.assert_array_equal(folded['params']['Dense_0']['kernel'], np.ones((64, 3)))
