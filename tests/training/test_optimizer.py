"""Durations, learning rates by step, SGD as PyTorch has it, and what a loss does not reach."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih.config import fields
from kdih.runtime import devices
from kdih.training import optimizer

STEPS = optimizer.Duration('steps', 100.0)


def make_train(**changes):
  train = fields.base().student.train
  train.update(**changes)
  return train


def rates(train, duration, *steps):
  schedule = optimizer.make_schedule(train, duration)
  return [float(schedule(jnp.array(step))) for step in steps]


def pytorch_sgd(parameter, gradients, rates, *, momentum, weight_decay, nesterov):
  """torch.optim.SGD's documented algorithm, dampening 0."""
  velocity = None
  for gradient, rate in zip(gradients, rates, strict=True):
    gradient = gradient + weight_decay * parameter
    velocity = gradient if velocity is None else momentum * velocity + gradient
    step = gradient + momentum * velocity if nesterov else velocity
    parameter = parameter - rate * step
  return parameter


def updated(train, parameter, gradients):
  duration = optimizer.Duration('steps', 1.0)
  tx = optimizer.make_optimizer(train, optimizer.make_schedule(train, duration))
  params = {'w': jnp.asarray(parameter, jnp.float32)}
  state = tx.init(params)
  for gradient in gradients:
    updates, state = tx.update({'w': jnp.asarray(gradient, jnp.float32)}, state, params)
    params = optax.apply_updates(params, updates)
  return params['w']


@pytest.mark.parametrize('unit, steps_per_epoch, length, steps', [
    ('epochs', 703.125, 60.0, 42188),  # 42187.5 images' worth of 64; round half to even.
    ('epochs', 703.125, 120.0, 84375),
    ('epochs', 0.4, 1.0, 0),
    ('epochs', 0.75, 2.0, 2),
    ('steps', 703.125, 60.0, 60),
    ('steps', 703.125, 2.6, 3),
])
def test_a_duration_is_the_nearest_whole_number_of_steps(unit, steps_per_epoch, length, steps):
  assert optimizer.Duration(unit, steps_per_epoch).steps(length) == steps


def test_the_paper_recipe_decays_at_epochs_60_120_and_180():
  steps = [s * 10 + d for s in (60, 120, 180) for d in (-1, 0)]
  found = rates(make_train(), optimizer.Duration('epochs', 10.0), 0, *steps, 1999)
  expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_repdistiller_recipe_decays_at_epochs_150_180_and_210():
  duration = optimizer.Duration('epochs', 4.0)
  train = fields.base('repdistiller').student.train
  found = rates(train, duration, 0, 599, 600, 719, 720, 839, 840)
  expected = [0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_two_milestones_on_one_step_both_decay():
  train = make_train(learning_rate=1.0, decay=0.5, milestones=(1.0, 1.4))
  found = rates(train, optimizer.Duration('epochs', 1.0), 0, 1, 2)
  np.testing.assert_allclose(found, [1.0, 0.25, 0.25])


def test_cosine_falls_from_the_learning_rate_to_0():
  train = make_train(schedule='cosine', length=100.0)
  found = rates(train, STEPS, 0, 25, 50, 100, 150)
  expected = [0.1, 0.05 * (1 + np.cos(np.pi / 4)), 0.05, 0, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_cosine_begins_where_the_warmup_ends():
  train = make_train(schedule='cosine', length=100.0, warmup=20.0)
  found = rates(train, STEPS, 0, 5, 10, 20, 60, 100)
  np.testing.assert_allclose(found, [0, 0.025, 0.05, 0.1, 0.05, 0], rtol=1e-5, atol=1e-8)


def test_warmup_rises_linearly_and_milestones_still_count_from_the_first_step():
  train = make_train(length=100.0, warmup=4.0, milestones=(10.0,))
  found = rates(train, STEPS, 0, 1, 2, 4, 9, 10)
  np.testing.assert_allclose(found, [0, 0.025, 0.05, 0.1, 0.1, 0.02], rtol=1e-5)


def test_a_warmup_in_epochs_lasts_that_many_epochs():
  train = make_train(schedule='constant', warmup=2.0)
  found = rates(train, optimizer.Duration('epochs', 5.0), 5, 10, 11)
  np.testing.assert_allclose(found, [0.05, 0.1, 0.1], rtol=1e-5)


def test_constant_stays():
  train = make_train(schedule='constant', length=10.0)
  np.testing.assert_allclose(rates(train, STEPS, 0, 5, 1000), [0.1] * 3, rtol=1e-6)


@pytest.mark.parametrize('momentum, nesterov', [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize('weight_decay', [0.0, 0.05])
def test_sgd_is_that_of_pytorch_also_where_the_learning_rate_falls(
    momentum, nesterov, weight_decay):
  rng = np.random.default_rng(0)
  parameter, gradients = rng.normal(size=3), rng.normal(size=(3, 3))
  settings = dict(momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
  train = make_train(unit='steps', length=3.0, milestones=(2.0,), **settings)
  expected = pytorch_sgd(parameter, gradients, (0.1, 0.1, 0.02), **settings)
  np.testing.assert_allclose(updated(train, parameter, gradients), expected, rtol=1e-5)


def test_sgd_decays_every_parameter_even_one_without_a_gradient():
  train = make_train(unit='steps', schedule='constant', momentum=0.0, nesterov=False)
  np.testing.assert_allclose(updated(train, [2.0], [[0.0]]), [2.0 * (1 - 0.1 * 5e-4)], rtol=1e-6)


def test_adamw_keeps_weight_decay_apart_from_the_gradient():
  train = make_train(optimizer='adamw', schedule='constant', weight_decay=0.5)
  # Its first step is lr * sign(g), whatever the gradient's size, and lr * decay * w beside it.
  expected = np.array([2.0 - 0.1 - 0.1 * 0.5 * 2.0, 1.0 + 0.1 - 0.1 * 0.5 * 1.0])
  np.testing.assert_allclose(updated(train, [2.0, 1.0], [[3.0, -0.2]]), expected, rtol=1e-5)


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
  assert named(optimizer.gradient_mask(loss, PARAMS)) == expectation


@pytest.mark.parametrize('loss', [loss for loss, _ in LOSSES.values()], ids=LOSSES)
def test_whatever_has_a_gradient_is_reached(loss):
  gradients = jax.vmap(
      jax.grad(loss), in_axes=None, axis_name=devices.AXIS, axis_size=4)(PARAMS)
  moved = named(jax.tree.map(lambda gradient: bool(np.any(gradient)), gradients))
  assert moved <= named(optimizer.gradient_mask(loss, PARAMS))


def test_shapes_are_enough_and_nothing_is_computed():
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
  assert optimizer.gradient_mask(LOSSES['stopped'][0], shapes) == {
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
  decayed = steps(tx, loss)
  kept = steps(optimizer.only(tx, optimizer.gradient_mask(loss, PARAMS)), loss)
  np.testing.assert_array_equal(kept['a'], decayed['a'])
  assert not np.array_equal(kept['a'], PARAMS['a'])
  for name in 'cd':
    assert not np.array_equal(decayed['b'][name], PARAMS['b'][name])
    assert kept['b'][name].tobytes() == PARAMS['b'][name].tobytes()


def test_where_all_is_reached_the_optimizer_is_left_as_it_is():
  tx = optax.sgd(0.1)
  assert optimizer.only(tx, optimizer.gradient_mask(LOSSES['all'][0], PARAMS)) is tx
