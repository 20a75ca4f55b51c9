"""What the tests of the models share."""
import dataclasses
import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdih.models import registry
from kdih.models.taps import EMBEDDING
from tests.helpers.slow import slow

# One name per family, and the fields that make it so small that it runs in a second.
SMALLER: dict[str, dict[str, Any]] = {
    'resnet8': {'stage_sizes': (1,), 'stage_widths': (2,), 'stem_width': 2},
    'resnet50': {'stage_sizes': (1, 2), 'stage_widths': (2, 3), 'stem_width': 2},
    'resnet18_imagenet': {'stage_sizes': (1,), 'stage_widths': (2,), 'stem_width': 2},
    'wrn_16_1': {'depth': 10},
    'vgg8': {'layout': (4, 'pool', 8, 'tap')},
    'vgg11': {'layout': (4, 'tap', 8, 'pool', 'tap')},
    'mobilenetv2': {'widening': 0.125},
    'shufflenetv1': {'stage_sizes': (2, 1), 'stage_widths': (36, 60)},
    'shufflenetv2': {'stage_sizes': (2, 1), 'stage_widths': (4, 8), 'last_width': 6},
    'vit_tiny': {'width': 6, 'depth': 2, 'num_heads': 2},
}
NAMES = tuple(SMALLER)
DEEP = ('resnet50', 'mobilenetv2', 'shufflenetv1', 'shufflenetv2')
FAMILIES = [slow(name) if name in DEEP else name for name in NAMES]
NORMALISED = [family for family in FAMILIES if family != 'vit_tiny']  # With batch norms.


@functools.cache
def shapes(name: str, size: int = 32, channels: int = 3, classes: int = 100,
           dtype: Any = jnp.float32) -> tuple[Any, Any]:
  """The shapes of a model's logits and variables, taps included, for a batch of 2."""
  model = registry.create(name, classes, dtype=dtype)
  run = functools.partial(model.init_with_output, train=False, mutable=True)
  images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  return jax.eval_shape(run, jax.random.key(0), images)


def tap_shapes(name: str, *size: int) -> tuple[tuple[int, ...], ...]:
  """Height, width and channels at every tap."""
  sown = dict(shapes(name, *size)[1]['intermediates'])
  del sown[EMBEDDING]
  assert set(sown) == {f'stage{i}' for i in range(1, len(sown) + 1)}
  return tuple(sown[f'stage{i}'].shape[1:] for i in range(1, len(sown) + 1))


def smaller(name: str, **fields: Any) -> nn.Module:
  """A tiny model of the family, for 3 classes."""
  return registry.create(name, 3, **SMALLER[name], **fields)


def random_images(batch: int, size: int, channels: int = 3) -> np.ndarray:
  """Normal float32 images."""
  images = np.random.default_rng(1).normal(size=(batch, size, size, channels))
  return images.astype(np.float32)


def random_variables(model: nn.Module, images: np.ndarray) -> Any:
  """Scales and variances positive, the rest of either sign; far quicker than the model's init."""
  random = np.random.default_rng(0)

  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    lowest = 0.5 if path[-1].key in ('scale', 'var') else -1
    return random.uniform(lowest, 1, leaf.shape).astype(np.float32)

  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  return jax.tree.map_with_path(draw, shapes)


def close(actual: Any, expected: Any) -> None:
  """Asserts that two trees agree."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
               actual, expected)


@dataclasses.dataclass(kw_only=True)
class Applied:
  """What `applied` computed; `outputs` are those of all submodules, by path."""
  variables: Any
  logits: jax.Array
  taps: dict[str, np.ndarray]
  embedding: jax.Array
  outputs: dict[str, np.ndarray]
  preactivations: dict[str, np.ndarray]
  statistics: Any


@functools.cache
def applied(name: str, train: bool = False, size: int = 8) -> Applied:
  """`smaller(name)` with `random_variables` on two `random_images` of that size."""
  model, images = smaller(name), random_images(2, size)
  variables = random_variables(model, images)
  call = functools.partial(model.apply, train=train, capture_intermediates=True,
                           mutable=['intermediates', 'preactivations', 'batch_stats'])
  quick = jax.jit(call, compiler_options={'xla_backend_optimization_level': 0})
  logits, written = jax.device_get(quick(variables, images))
  found = flax.traverse_util.flatten_dict(written['intermediates'], sep='/')
  taps = {path: x for path, x in found.items() if '/' not in path and path != '__call__'}
  embedding = taps.pop(EMBEDDING)
  outputs = {path.removesuffix('/__call__'): x[0] for path, x in found.items()
             if path.endswith('/__call__')}
  return Applied(variables=variables, logits=logits, taps=taps, embedding=embedding,
                 outputs=outputs, preactivations=written.get('preactivations', {}),
                 statistics=written.get('batch_stats'))
