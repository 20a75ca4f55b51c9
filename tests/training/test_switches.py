"""Every switch of a training changes its numbers, or is proven to change none."""
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.phases.problem import Problem, TrainingData
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices
from kdih.training import state as state_lib, steps_per_call
from kdih.training.step import make_train_step
from kdih.training.task import Moment, blank_batch
from tests.helpers.runs import read_config
from tests.helpers.slow import slow
from tests.helpers.tiny_nets import NoTaps, TinyNet

SPEC = DataSpec('digits', (8, 8, 1), 10)
SPLITS = made_splits(SPEC, 40)
UPDATES = 6  # The milestone is at 4.


class Dropping(nn.Module):
  """A linear classifier with dropout."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train):
    flat = images.reshape(len(images), -1)
    return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(flat))


def problem_of(model: nn.Module, *overrides: str) -> Problem:
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  data = TrainingData(config, SPLITS)
  return Problem(config=config, task=teacher_task(model, data.preprocess),
                 variables=networks.initialise(model, jax.random.key(0), (8, 8, 1)),
                 train=config.teacher.train, data=data, image_shape=(8, 8, 1))


def trained(model: nn.Module, *overrides: str) -> Any:
  """The variables, in numpy, after `UPDATES` updates as the loop makes them."""
  problem = problem_of(model, *overrides)
  state = devices.replicate(problem.state(problem.variables, problem.config.seed))
  per_call = problem.schedule('teacher').per_call
  sizes = list(steps_per_call.sizes(0, UPDATES, UPDATES, per_call))
  step = problem.compiled()
  for feed in problem.feeds(0, sizes):
    state, _ = step(state, {}, problem.resident, feed)
  return jax.device_get(state.variables)


@pytest.fixture(scope='module')
def usual():
  return trained(NoTaps(10))


@pytest.fixture(scope='module')
def usual_with_batch_norm():
  return trained(TinyNet(10, axis_name=devices.AXIS))


def difference(one, other) -> float:
  return max(float(abs(a - b).max()) for a, b in zip(
      jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize('switch', [
    'teacher.train.weight_decay=0.01', 'teacher.train.schedule=cosine', 'data.order_seed=31', *(
        slow(switch) for switch in (
            'teacher.train.optimizer=adamw', 'teacher.train.learning_rate=0.05',
            'teacher.train.momentum=0.5', 'teacher.train.nesterov=False',
            'teacher.train.schedule=constant', 'teacher.train.warmup=2',
            'teacher.train.milestones=2', 'teacher.train.decay=0.5',
            'teacher.train.global_batch_size=16', 'seed=31'))])
def test_a_switch_changes_the_update(usual, switch):
  assert difference(trained(NoTaps(10), switch), usual) > 1e-4


@pytest.mark.slow
def test_a_cosine_depends_on_the_length():
  one, other = (trained(NoTaps(10), 'teacher.train.schedule=cosine', f'teacher.train.length={n}')
                for n in (6, 12))
  assert difference(one, other) > 1e-4


def test_several_updates_in_a_call_change_no_bit(usual):
  together = trained(NoTaps(10), 'compute.steps_per_call=2')
  jax.tree.map(np.testing.assert_array_equal, together, usual)


@pytest.mark.slow
def test_the_seed_alone_drops_out():
  """With one order seed, two seeds see the same images."""
  first, same, other = (trained(Dropping(10), f'seed={seed}', 'data.order_seed=3')
                        for seed in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, first, same)
  assert difference(first, other) > 1e-3
  plain = [trained(NoTaps(10), f'seed={seed}', 'data.order_seed=3') for seed in (1, 2)]
  jax.tree.map(np.testing.assert_array_equal, *plain)


@pytest.mark.slow
def test_parts_of_a_batch_change_what_batch_norms_see(usual_with_batch_norm):
  parts = trained(TinyNet(10, axis_name=devices.AXIS), 'compute.accumulate=2')
  assert difference(usual_with_batch_norm['batch_stats'], parts['batch_stats']) > 1e-3


@pytest.mark.slow
def test_recomputing_costs_more_and_changes_nothing_but_rounding(usual_with_batch_norm):
  model = TinyNet(10, axis_name=devices.AXIS)
  assert difference(trained(model, 'compute.remat=True'), usual_with_batch_norm) < 1e-5

  def operations(flag):
    problem = problem_of(model, f'compute.remat={flag}')
    state = devices.replicate(problem.state(problem.variables, 0))
    feed = next(problem.feeds(0, [1]))
    return problem.compiled().lower(state, {}, problem.resident, feed).cost_analysis()['flops']

  assert operations(True) > operations(False)


@pytest.mark.parametrize('flag', [True, False])
def test_batch_norms_are_synchronised_if_the_config_says_it(flag):
  built = networks.build(read_config('unused', 'unused', f'--config.sync_batch_norm={flag}'), SPEC)
  axis = devices.AXIS if flag else None
  assert built.teacher.axis_name == built.student.axis_name == axis
  assert all(method.context.axis_name == axis for method in built.methods.values())


@pytest.mark.slow
def test_synchronised_batch_norms_see_the_batches_of_all_devices(usual_with_batch_norm):
  apart = trained(TinyNet(10))
  assert difference(usual_with_batch_norm['batch_stats'], apart['batch_stats']) > 1e-3


def test_the_scale_of_the_learning_rate_scales_the_update_with_its_weight_decay():
  """By hand: the momentum keeps gradient + decay * parameter, whatever the scale."""
  tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, momentum=0.9))
  state = state_lib.create({'params': {'w': jnp.array([2.0, -1.0])}}, tx, 0)
  state = dataclasses.replace(state, learning_rate_scale=jnp.float32(0.25))
  velocity, w = np.zeros(2), np.array([2.0, -1.0])
  for gradient in ([1.0, 3.0], [-2.0, 0.5]):
    state = state.apply_gradients(tx, {'w': jnp.array(gradient)}, {})
    velocity = 0.9 * velocity + gradient + 0.1 * w
    w = w - 0.25 * 0.5 * velocity
  np.testing.assert_allclose(state.params['w'], w, rtol=1e-6)
  assert int(state.step) == 2 and float(state.learning_rate_scale) == 0.25


def test_a_task_gets_the_epoch_of_the_step():
  seen = []

  def loss(params, collections, frozen, batch, signal, moment: Moment):
    seen.append(float(moment.epoch))
    return {'term': params['w'] + 0 * batch.images.sum()}, (
        collections, {'model': jnp.zeros((2, 3))})

  tx = optax.sgd(0.1)
  task = dataclasses.replace(teacher_task(NoTaps(3), lambda *_: None), loss=loss)
  step = make_train_step(task, tx, steps_per_epoch=2.5)
  state = state_lib.create({'params': {'w': jnp.zeros(())}}, tx, 0)
  with jax.disable_jit():
    for _ in range(3):
      state, _ = jax.vmap(
          lambda _, state=state: step(state, {}, blank_batch(2, (2, 2, 1)), None),
          axis_name=devices.AXIS, out_axes=None)(jnp.zeros(1))
  assert seen == pytest.approx([0.0, 0.4, 0.8])
