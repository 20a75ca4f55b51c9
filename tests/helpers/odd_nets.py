"""Models as users write them: that keep, draw, sow and return this and that."""
import collections
import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

Pair = collections.namedtuple('Pair', ['extra', 'logits'])


@flax.struct.dataclass
class Said:
  """What some libraries' models return."""

  hidden: Any
  logits: Any


@dataclasses.dataclass
class NoTree:
  """What jax knows nothing of."""

  logits: Any


class Kept(nn.Module):
  """Keeps a mean and a count in a collection of its own, and drops paths in training."""

  num_classes: int
  width: int = 4

  @nn.compact
  def __call__(self, images, train):
    x = images
    for stage in (1, 2):
      x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
      x = nn.Dropout(0.2, rng_collection='droppath', deterministic=not train)(x)
      self.sow('intermediates', f'stage{stage}', x)
    x = x.mean((1, 2))
    mean = self.variable('ema', 'mean', jnp.zeros, x.shape[-1:])
    count = self.variable('ema', 'count', jnp.zeros, (), jnp.int32)
    if train:
      mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
      count.value += 1
    return nn.Dense(self.num_classes)(x - mean.value[None])


class Odd(nn.Module):
  """A model of two taps that is odd in one way, and `only` in 'training', 'evaluation' or both."""

  num_classes: int
  odd: str = ''
  only: str = 'both'

  @nn.compact
  def __call__(self, images, train):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(images))
    self.sow('intermediates', 'stage1', x)
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
    self.sow('intermediates', 'stage2', x)
    logits = nn.Dense(self.num_classes)(x.mean((1, 2)))
    now = {'both': True, 'training': train, 'evaluation': not train}[self.only]
    return getattr(self, self.odd)(x, logits, train) if self.odd and now else logits

  # What it returns.

  def returns_tuple(self, x, logits, train):
    return logits, x

  def returns_list(self, x, logits, train):
    return [logits, x]

  def returns_empty(self, x, logits, train):
    return ()

  def returns_dict(self, x, logits, train):
    return {'aux': x, 'logits': logits}

  def returns_other_dict(self, x, logits, train):
    return {'aux': x, 'predictions': logits}

  def returns_named_tuple(self, x, logits, train):
    return Pair(x, logits)

  def returns_struct(self, x, logits, train):
    return Said(x, logits)

  def returns_no_tree(self, x, logits, train):
    return NoTree(logits)

  def returns_nested(self, x, logits, train):
    return (logits, x), x

  def returns_text(self, x, logits, train):
    return 'logits'

  def returns_nothing(self, x, logits, train):
    return None

  def returns_number(self, x, logits, train):
    return 3.0

  def wider(self, x, logits, train):
    return jnp.concatenate([logits, logits], -1)

  def map(self, x, logits, train):
    return logits[:, None]

  def scalar(self, x, logits, train):
    return logits.mean()

  def whole(self, x, logits, train):
    return logits.argsort(-1)

  def half(self, x, logits, train):
    return logits.astype(jnp.float16)

  def bfloat16(self, x, logits, train):
    return logits.astype(jnp.bfloat16)

  def complex(self, x, logits, train):
    return logits + 0j

  # What it draws.

  def draws_noise(self, x, logits, train):
    return logits + jax.random.normal(self.make_rng('noise'), logits.shape)

  def draws_strangely_named(self, x, logits, train):
    return logits + jax.random.normal(self.make_rng('a "b" c\n'), logits.shape)

  def draws_unnamed(self, x, logits, train):
    return logits + jax.random.normal(self.make_rng(), logits.shape)

  # What it keeps.

  def keeps_other_dtype(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, logits.shape[-1:])
    if train:
      kept.value = logits.mean(0).astype(jnp.bfloat16)
    return logits

  def keeps_other_shape(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, logits.shape[-1:])
    if train:
      kept.value = x.mean(0)
    return logits

  def keeps_more(self, x, logits, train):
    if train or self.is_initializing():
      self.variable('stats', 'one', jnp.zeros, ())
    if train:
      self.variable('stats', 'two', jnp.zeros, ())
    return logits

  def keeps_in_training(self, x, logits, train):
    if train:
      self.variable('stats', 'kept', jnp.zeros, ())
    return logits

  def keeps_batch(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, logits.shape)
    if train:
      kept.value = logits
    return logits

  def keeps_input(self, x, logits, train):
    return logits + self.variable('input', 'kept', jnp.zeros, ()).value

  def keeps_folded(self, x, logits, train):
    return logits + self.variable('folded', 'kept', jnp.zeros, ()).value

  def keeps_memory(self, x, logits, train):
    return logits + self.variable('memory', 'kept', jnp.zeros, ()).value

  def keeps_whole(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, (), jnp.int32)
    if train:
      kept.value = logits.argmax(-1).sum()
    return logits

  def keeps_count(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, (), jnp.int32)
    if train:
      kept.value += 1
    return logits

  def keeps_key(self, x, logits, train):
    self.variable('stats', 'kept', lambda: jax.random.key(0))
    return logits

  def keeps_text(self, x, logits, train):
    self.variable('stats', 'kept', lambda: 'text')
    return logits

  def keeps_tuple_and_array(self, x, logits, train):
    self.sow('stats', 'sown', logits)
    self.variable('stats', 'kept', jnp.zeros, ())
    return logits

  def changes_in_evaluation(self, x, logits, train):
    kept = self.variable('stats', 'kept', jnp.zeros, ())
    if not self.is_initializing():
      kept.value += 1
    return logits

  def sows_a_loss(self, x, logits, train):
    self.sow('losses', 'norm', jnp.square(x).mean())
    return logits

  def sows_into_intermediates_by_variable(self, x, logits, train):
    return logits + self.variable('intermediates', 'mine', jnp.zeros, ()).value

  def spectral_norm(self, x, logits, train):
    return nn.SpectralNorm(nn.Dense(self.num_classes))(logits, update_stats=train)

  def partitioned(self, x, logits, train):
    init = nn.with_partitioning(nn.initializers.zeros, ('a', 'b'))
    return logits + nn.Dense(self.num_classes, kernel_init=init)(logits)

  # What it sows as taps.

  def sows_scalar(self, x, logits, train):
    self.sow('intermediates', 'scalar', x.mean())
    return logits

  def sows_number(self, x, logits, train):
    self.sow('intermediates', 'number', 3)
    return logits

  def sows_text(self, x, logits, train):
    self.sow('intermediates', 'text', 'hello')
    return logits

  def sows_no_batch(self, x, logits, train):
    self.sow('intermediates', 'mean', x.mean(0))
    return logits

  def sows_per_image(self, x, logits, train):
    self.sow('intermediates', 'per_image', x.mean((1, 2, 3)))
    return logits

  def sows_dict(self, x, logits, train):
    self.sow('intermediates', 'dict', {'a': x})
    return logits

  def sows_key(self, x, logits, train):
    self.sow('intermediates', 'key', jax.random.split(jax.random.key(0), len(x)))
    return logits

  def sows_none(self, x, logits, train):
    self.sow('intermediates', 'none', None)
    return logits

  def sows_complex(self, x, logits, train):
    self.sow('intermediates', 'complex', x + 0j)
    return logits

  def sows_whole(self, x, logits, train):
    self.sow('intermediates', 'whole', x.argmax(-1)[..., None])
    return logits

  def sows_third(self, x, logits, train):
    self.sow('intermediates', 'stage3', x)
    return logits

  def sows_scalar_embedding(self, x, logits, train):
    self.sow('intermediates', 'embedding', x.mean())
    return logits

  def sows_text_preactivation(self, x, logits, train):
    self.sow('preactivations', 'stage2', 'text')
    return logits

  # What it computes.

  def makes_parameters(self, x, logits, train):
    return logits + nn.Dense(self.num_classes, name='late')(logits)

  def raises(self, x, logits, train):
    raise KeyError('gone')

  def exits(self, x, logits, train):
    raise SystemExit(7)

  def looks(self, x, logits, train):
    return logits if logits.sum() > 0 else -logits

  def loops(self, x, logits, train):
    return jax.lax.while_loop(lambda z: z.sum() < -1e30, lambda z: 2 * z, logits)

  def calls_back(self, x, logits, train):
    return jax.pure_callback(
        lambda z: z, jax.ShapeDtypeStruct(logits.shape, logits.dtype), logits)

  def prints(self, x, logits, train):
    jax.debug.print('{}', logits.sum())
    return logits

  def means_over_devices(self, x, logits, train):
    return logits - jax.lax.pmean(logits.mean(), 'batch')

  def cuts_in_eights(self, x, logits, train):
    return logits.reshape(8, -1, *logits.shape[1:]).reshape(logits.shape)

  def has_whole_parameter(self, x, logits, train):
    return logits + self.param('whole', lambda key: jnp.zeros(self.num_classes, jnp.int32))[None]

  def has_params_layer(self, x, logits, train):
    return nn.Dense(self.num_classes, name='params')(logits)

  def is_remat(self, x, logits, train):
    return nn.remat(nn.Dense)(self.num_classes)(logits)


class Scanned(nn.Module):
  """Drops paths in layers that are one by `nn.scan`."""

  num_classes: int

  @nn.compact
  def __call__(self, images, train):
    class Layer(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        x = nn.Dropout(0.5, rng_collection='droppath', deterministic=not train)(x)
        return nn.relu(nn.Dense(x.shape[-1])(x)), None

    layers = nn.scan(Layer, variable_axes={'params': 0},
                     split_rngs={'params': True, 'droppath': True}, length=3)
    x, _ = layers()(images.reshape(len(images), -1), None)
    self.sow('intermediates', 'stage1', x)
    return nn.Dense(self.num_classes)(x)


class Empty(nn.Module):
  """Has no parameters."""

  num_classes: int

  def __call__(self, images, train):
    self.sow('intermediates', 'stage1', images)
    return jnp.zeros((len(images), self.num_classes)) + images.mean()


class KeywordOnly(nn.Module):
  """Takes `train` by its name alone."""

  num_classes: int

  @nn.compact
  def __call__(self, images, *, train=False):
    self.sow('intermediates', 'stage1', images)
    return nn.Dense(self.num_classes)(images.mean((1, 2)))


class NoTrain(nn.Module):
  """Knows no modes."""

  num_classes: int

  @nn.compact
  def __call__(self, images):
    return nn.Dense(self.num_classes)(images.mean((1, 2)))


class WantsMore(nn.Module):
  """Takes an argument that nobody gives it."""

  num_classes: int

  @nn.compact
  def __call__(self, images, mask, train):
    return nn.Dense(self.num_classes)(images.mean((1, 2)) * mask)


class SetUp(nn.Module):
  """Makes its layers in `setup`."""

  num_classes: int

  def setup(self):
    self.body = nn.Dense(8)
    self.head = nn.Dense(self.num_classes)

  def __call__(self, images, train):
    x = nn.relu(self.body(images.reshape(len(images), -1)))
    self.sow('intermediates', 'stage1', x)
    return self.head(x)


class LacksField(nn.Module):
  """Has a field that must be given."""

  num_classes: int
  depth: int

  def __call__(self, images, train):
    return images


class Refuses(nn.Module):
  """Refuses its fields."""

  num_classes: int

  def __post_init__(self):
    super().__post_init__()
    raise SystemExit(7)


class Unhashable(nn.Module):
  """Has an array as a field."""

  num_classes: int
  table: Any = dataclasses.field(default_factory=lambda: jnp.ones(3))

  @nn.compact
  def __call__(self, images, train):
    x = images * self.table[0]
    self.sow('intermediates', 'stage1', x)
    noise = jax.random.normal(self.make_rng('noise'), ()) if train else 0.0
    return nn.Dense(self.num_classes)(x.mean((1, 2))) + noise


def function(num_classes):
  """Is no class."""
  return KeywordOnly(num_classes)


class Plain:
  """Is no module."""
