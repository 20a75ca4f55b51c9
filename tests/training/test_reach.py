"""Which parameters a loss reaches, and that the others keep their bits."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih.config import fields
from kdih.runtime import devices
from kdih.training import optimizer

PARAMS = {'a': jnp.array([1.0, -2.0]), 'b': {'c': jnp.array([0.5, 3.0]), 'd': jnp.array(2.0)}}


def stopped(x):
  return jax.lax.stop_gradient(x)


def named(flags) -> set[str]:
  leaves = jax.tree_util.tree_leaves_with_path(flags)
  return {path[-1].key for path, flag in leaves if flag}


@jax.custom_vjp
def _product(one, other):
  return (one * other).sum()


_product.defvjp(lambda one, other: (_product(one, other), (one, other)),
                lambda kept, slope: (slope * kept[1], slope * kept[0]))

LOSSES = {
    'all': (lambda p: (p['a'] * p['b']['c']).sum() * p['b']['d'], {'a', 'c', 'd'}),
    'one': (lambda p: (p['a']**2).sum(), {'a'}),
    'none': (lambda p: jnp.zeros(()), set()),
    'a parameter itself': (lambda p: p['b']['d'], {'d'}),
    'what is computed and dropped': (
        lambda p: p['b']['d'] + len(p['a'] * p['b']['c']), {'d'}),
    'stopped': (lambda p: (p['a'] * stopped(p['b']['c'])).sum(), {'a'}),
    'stopped far away': (lambda p: stopped(jnp.sin(p['b']['c']) + p['b']['d']).sum()
                         + p['a'].sum(), {'a'}),
    'stopped here and not there': (lambda p: (p['a'] * stopped(p['a'])).sum(), {'a'}),
    'jit': (lambda p: jax.jit(lambda a, d: (jnp.tanh(a) * d).sum())(p['a'], p['b']['d']),
            {'a', 'd'}),
    'jit of what is stopped': (lambda p: jax.jit(lambda a, c: (a * c).sum())(
        p['a'], stopped(p['b']['c'])), {'a'}),
    'scan': (lambda p: jax.lax.scan(lambda s, x: (s * p['b']['d'] + x, None), 0.0, p['a'])[0],
             {'a', 'd'}),
    'custom derivatives': (lambda p: _product(p['a'], jax.nn.relu(p['b']['c'])), {'a', 'c'}),
    'mean over devices': (lambda p: jax.lax.pmean(p['a'].sum(), devices.AXIS), {'a'}),
    'gathered': (lambda p: devices.gather(p['b']['c']).sum() * jax.lax.axis_size(devices.AXIS),
                 {'c'}),
}


@pytest.mark.parametrize('loss, expectation', LOSSES.values(), ids=LOSSES)
def test_a_loss_reaches_what_it_depends_on(loss, expectation):
  assert named(optimizer.reached(loss, PARAMS)) == expectation


@pytest.mark.parametrize('loss', [loss for loss, _ in LOSSES.values()], ids=LOSSES)
def test_whatever_has_a_gradient_is_reached(loss):
  gradients = jax.vmap(
      jax.grad(loss), in_axes=None, axis_name=devices.AXIS, axis_size=4)(PARAMS)
  moved = named(jax.tree.map(lambda gradient: bool(np.any(gradient)), gradients))
  assert moved <= named(optimizer.reached(loss, PARAMS))


def test_shapes_are_enough_and_nothing_is_computed():
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
  assert optimizer.reached(LOSSES['stopped'][0], shapes) == {
      'a': True, 'b': {'c': False, 'd': False}}


def steps(tx, loss, number=3):
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(number):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize('kind', ['sgd', 'adamw'])
def test_what_is_not_reached_keeps_its_bits(kind):
  train = fields.base().student.train
  train.update(optimizer=kind, weight_decay=0.1)
  tx = optimizer.make_optimizer(train, lambda step: 0.1)
  loss, _ = LOSSES['one']
  decayed, kept = steps(tx, loss), steps(optimizer.only(tx, optimizer.reached(loss, PARAMS)), loss)
  np.testing.assert_array_equal(kept['a'], decayed['a'])
  assert not np.array_equal(kept['a'], PARAMS['a'])
  for name in 'cd':
    assert not np.array_equal(decayed['b'][name], PARAMS['b'][name])
    assert kept['b'][name].tobytes() == PARAMS['b'][name].tobytes()


def test_where_all_is_reached_the_optimizer_is_left_as_it_is():
  tx = optax.sgd(0.1)
  assert optimizer.only(tx, optimizer.reached(LOSSES['all'][0], PARAMS)) is tx
