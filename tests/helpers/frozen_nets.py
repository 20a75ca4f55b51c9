"""Networks with batch norms, of which some can be folded and others cannot."""
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

conv = partial(nn.Conv, features=4, kernel_size=(3, 3), use_bias=False)
norm = partial(nn.BatchNorm, use_running_average=True)


class Net(nn.Module):
  """The base of the others: `body` between the images and a classifier."""
  dtype: Any = None

  @nn.compact
  def __call__(self, images, train):
    x = nn.relu(self.body(images))
    self.sow('intermediates', 'stage1', x)
    return nn.Dense(3)(x.reshape(len(x), -1))


class Plain(Net):
  def body(self, x):
    return norm(dtype=self.dtype)(conv(dtype=self.dtype)(x))


class Biased(Net):
  def body(self, x):
    return norm()(conv(use_bias=True)(x))


class Dense(Net):
  def body(self, x):
    return norm(axis=3)(nn.Dense(5)(x))


class Grouped(Net):
  def body(self, x):
    x = nn.relu(norm()(conv(strides=2)(x)))
    return norm()(nn.Conv(8, (3, 3), feature_group_count=4, kernel_dilation=2)(x))


class Bare(Net):
  def body(self, x):
    return norm(use_scale=False, use_bias=False, epsilon=0.3)(conv()(x))


class Cast(Net):
  def body(self, x):
    return norm(dtype=jnp.float32)(conv(dtype=jnp.bfloat16)(x).astype(jnp.float32))


class Asked(Net):
  def body(self, x):
    return nn.BatchNorm()(nn.BatchNorm()(conv()(x), use_running_average=True), True)


class Setup(Net):
  def setup(self):
    self.layers = [conv(), norm(), nn.relu, conv(), norm()]
    self.classifier = nn.Dense(3)

  def __call__(self, images, train):
    x = images
    for layer in self.layers:
      x = layer(x)
    self.sow('intermediates', 'stage1', x)
    return self.classifier(x.reshape(len(x), -1))


class PreActivation(Net):
  def body(self, x):
    return conv()(nn.relu(norm()(x)))


class UsedTwice(Net):
  def body(self, x):
    x = conv()(x)
    return norm()(x) + x


class SownAndRead(Net):
  def body(self, x):
    x = conv()(x)
    self.sow('intermediates', 'embedding', x)
    return norm()(x)


class SharedConv(Net):
  def body(self, x):
    layer = conv(features=3)
    return norm()(layer(nn.relu(layer(x))))


class SharedNorm(Net):
  def body(self, x):
    layer = norm()
    return layer(nn.relu(layer(conv()(x))))


class Tied(Net):
  def body(self, x):
    layer = conv()
    x = norm()(layer(x))
    return x * layer.variables['params']['kernel'].sum()


class OtherAxis(Net):
  def body(self, x):
    return norm(axis=1)(conv()(x))


class Centred(nn.Conv):
  """What it multiplies by is not linear in its kernel."""
  def __call__(self, x):
    return jnp.tanh(super().__call__(x))


class Subclass(Net):
  def body(self, x):
    return norm()(Centred(4, (3, 3))(x))


class Rounded(Net):
  def body(self, x):
    def rounded(x, kernel, dimensions, precision=None):
      del dimensions, precision
      return jnp.einsum('bhwc,cd->bhwd', x, jnp.round(4 * kernel))
    return norm()(nn.Dense(4, dot_general=rounded)(x))


class Normed(Net):
  def body(self, x):
    return norm()(nn.WeightNorm(conv())(x))


class Boxed(Net):
  def body(self, x):
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, None, None))
    return norm()(conv(kernel_init=boxed)(x))


class ConvNorm(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return norm()(conv(features=3)(x)), None


class Remat(Net):
  def body(self, x):
    return nn.remat(ConvNorm)()(x)[0]


class Scanned(Net):
  def body(self, x):
    scanned = nn.scan(ConvNorm, length=2, split_rngs={'params': True},
                      variable_axes={'params': 0, 'batch_stats': 0})
    return scanned()(x)[0]


class Within(Net):
  """Applies a module by itself to variables that it keeps for it under another path."""
  def body(self, x):
    if self.is_initializing():
      return ConvNorm(name='kept')(x)[0]
    variables = {name: self.variables[name]['kept'] for name in ('params', 'batch_stats')}
    return ConvNorm(parent=None).apply(variables, x)[0]


class Intercepted(Net):
  def body(self, x):
    def doubled(call, args, kwargs, context):
      twice = 2 if isinstance(context.module, nn.BatchNorm) else 1
      return twice * call(*args, **kwargs)
    with nn.intercept_methods(doubled):
      return norm()(conv()(x))


class Unread(Net):
  """Sows the output of its convolution, which is no tap that is read."""
  def body(self, x):
    x = conv()(x)
    self.sow('intermediates', 'stage2', x)
    return norm()(x)


# How many batch norms there are, and how many remain.
COUNTS = {
    Plain: (1, 0), Biased: (1, 0), Dense: (1, 0), Grouped: (2, 0), Bare: (1, 0), Cast: (1, 0),
    Asked: (2, 1), Setup: (2, 0), Unread: (1, 0), PreActivation: (1, 1), UsedTwice: (1, 1),
    SownAndRead: (1, 1), SharedConv: (1, 1), SharedNorm: (2, 2), Tied: (1, 1), OtherAxis: (1, 1),
    Subclass: (1, 1), Rounded: (1, 1), Normed: (2, 2), Remat: (1, 1), Scanned: (1, 1),
    Within: (1, 1), Intercepted: (1, 1)}
