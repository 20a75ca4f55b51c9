"""Several updates in one compiled call: where calls end, and that they change nothing."""
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih import errors, main
from kdih.data import sampling
from kdih.phases import networks
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices
from kdih.training import metric_log, state, steps_per_call
from tests.helpers.arrays import PREPROCESS, Arrays, compiled_step, fed
from tests.helpers.runs import exported, read_config
from tests.helpers.slow import slow
from tests.helpers.started import listening
from tests.helpers.tiny_nets import NoTaps, TinyNet


@pytest.mark.parametrize(('start', 'stop', 'every', 'most', 'expectation'), [
    (0, 10, 10, 4, [4, 4, 2]),  # An evaluation ends a call.
    (0, 20, 10, 4, [4, 4, 2, 4, 4, 2]),
    (4, 20, 10, 4, [4, 2, 4, 4, 2]),  # What was cut off goes on as it would have.
    (5, 20, 10, 4, [3, 2, 4, 4, 2]),
    (0, 7, 3, 50, [3, 3, 1]),
    (0, 3, 100, 1, [1, 1, 1]),
    (6, 6, 3, 2, [])])
def test_calls_end_at_evaluations_and_at_the_end(start, stop, every, most, expectation):
  assert list(steps_per_call.sizes(start, stop, every, most)) == expectation


def test_a_profile_begins_where_a_call_ends():
  cases = ((100, 1), (100, 4), (11, 50))
  assert [steps_per_call.end_from(10, every, most) for every, most in cases] == [10, 12, 11]


@pytest.mark.parametrize(('requested', 'cpu', 'streaming', 'expectation'), [
    (0, True, False, 1), (0, False, False, 50), (0, False, True, 1), (7, True, True, 7)])
def test_the_number_is_chosen_for_the_device(monkeypatch, requested, cpu, streaming, expectation):
  monkeypatch.setattr(devices, 'on_cpu', lambda: cpu)
  assert steps_per_call.per_call(requested, 50, streaming) == expectation


@pytest.mark.parametrize('number', [0, 1, 3])
def test_feeds_go_to_their_devices_ahead_and_keep_their_order(number):
  read = []

  def feeds():
    for value in range(6):
      read.append(value)
      yield {'image': np.arange(8).reshape(4, 2) + 10 * value}

  for turn, feed in enumerate(steps_per_call.ahead(feeds(), number)):
    assert len(read) == min(turn + 1 + number, 6)
    np.testing.assert_array_equal(feed['image'], np.arange(8).reshape(4, 2) + 10 * turn)
    parts = {shard.device: np.asarray(shard.data) for shard in feed['image'].addressable_shards}
    for place, device in enumerate(jax.local_devices()):
      np.testing.assert_array_equal(parts[device] - 10 * turn, [[2 * place, 2 * place + 1]])
  assert read == list(range(6)) and turn == 5


def once(seed, order_seed):
  """The variables after a batch, of a classifier that starts from the same ones."""
  loader, model, tx = Arrays(32), NoTaps(10), optax.sgd(0.1)
  step = compiled_step(teacher_task(model, PREPROCESS), tx, loader, 1.0)
  current = devices.replicate(state.create(
      networks.initialise(model, jax.random.key(0), (8, 8, 1)), tx, seed, order_seed))
  feed = next(fed(iter([{'index': np.arange(32, dtype=np.int32)}]), [1]))
  after, _ = step(current, {}, loader.resident, feed)
  return np.asarray(after.params['Dense_0']['kernel'])


@pytest.mark.slow
def test_the_seed_of_the_order_alone_augments():
  np.testing.assert_array_equal(once(1, 7), once(2, 7))
  np.testing.assert_array_equal(once(7, -1), once(2, 7))
  assert not np.array_equal(once(1, 7), once(1, 8))


@pytest.mark.parametrize(('override', 'expectation'), [('seed=5', 5), ('data.order_seed=9', 9)])
def test_the_seed_of_the_order_chooses_the_batches(
    tmp_path, digits_dir, monkeypatch, override, expectation):
  seeds = []

  def stop(subset, batch_size, seed, start, stop):
    seeds.append(seed)
    raise KeyboardInterrupt

  monkeypatch.setattr(sampling, 'train_batches', stop)
  with pytest.raises(KeyboardInterrupt):
    main.run(read_config(tmp_path, digits_dir, '--config.phases=teacher',
                             f'--config.{override}'), tmp_path)
  assert seeds == [expectation]


def trained(model, sizes, count=96):
  """(state in numpy, losses) after calls of such sizes, from the same variables."""
  loader, tx = Arrays(count), optax.sgd(0.1, momentum=0.9)
  step = compiled_step(teacher_task(model, PREPROCESS), tx, loader)
  current = devices.replicate(state.create(
      networks.initialise(model, jax.random.key(0), (8, 8, 1)), tx, 5))
  batches = sampling.train_batches(np.arange(count, dtype=np.int32), 32, 5, 0, sum(sizes))
  losses = []
  for feed in fed(batches, sizes):
    current, metrics = step(current, {}, loader.resident, feed)
    losses.extend(np.asarray(metrics['loss']))
  return jax.device_get(current), losses


@pytest.mark.slow
@pytest.mark.parametrize('model', [
    NoTaps(10), slow(TinyNet(10, axis_name=devices.AXIS))])
def test_several_updates_in_a_call_are_those_of_as_many_calls(monkeypatch, model):
  """Unrolled, as on a CPU, and in a loop."""
  alone, losses = trained(model, [1] * 4)
  assert len(losses) == 4 and len(set(losses)) == 4
  for on_cpu, sizes in ((True, [3, 1]), (False, [4])):
    monkeypatch.setattr(devices, 'on_cpu', lambda on_cpu=on_cpu: on_cpu)
    together, same = trained(model, sizes)
    assert int(together.step) == 4
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 together, alone)


def teacher(workdir, digits_dir, monkeypatch, per_call, loader='memory', stop_at=None):
  """The lines of metrics and the exported variables; asked to stop while a step is read."""
  config = read_config(
      workdir, digits_dir, '--config.phases=teacher', f'--config.data.loader={loader}',
      f'--config.compute.steps_per_call={per_call}', '--config.log_every_steps=3',
      '--config.teacher.train.length=13', '--config.teacher.train.evaluate_every=7')
  if stop_at is not None:
    batches = sampling.train_batches

    def interrupted(subset, batch_size, seed, start, stop):
      for step, batch in enumerate(batches(subset, batch_size, seed, start, stop), start):
        if step == stop_at and not start:
          os.kill(os.getpid(), signal.SIGTERM)
        yield batch

    with monkeypatch.context() as patch, pytest.raises(errors.PreemptedError), listening():
      patch.setattr(sampling, 'train_batches', interrupted)
      main.run(config, workdir)
  main.run(config, workdir)
  lines = metric_log.read_metrics(workdir / 'teacher' / 'metrics.jsonl')
  return [{k: v for k, v in line.items() if k != 'examples_per_second'} for line in lines], (
      exported(workdir, 'teacher'))


@pytest.mark.slow
@pytest.mark.parametrize('loader', ['memory', 'streaming'])
@pytest.mark.parametrize('per_call', [2, 3])
def test_a_run_is_the_same_whatever_a_call_holds(
    tmp_path, digits_dir, monkeypatch, loader, per_call):
  """In its lines and, but for rounding, its variables; cut off in an epoch it has the same bits."""
  lines, variables = teacher(tmp_path / 'one', digits_dir, monkeypatch, 1)
  assert [line['step'] for line in lines] == [1, 3, 6, 7, 7, 10, 13, 13]
  same, close = teacher(tmp_path / 'more', digits_dir, monkeypatch, per_call, loader)
  assert [line.keys() for line in same] == [line.keys() for line in lines]
  for line, other in zip(lines, same, strict=True):
    assert other == pytest.approx(line, rel=1e-5)
  for name, array in variables.items():
    np.testing.assert_allclose(close[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
  _, resumed = teacher(tmp_path / 'cut', digits_dir, monkeypatch, per_call, loader, stop_at=3)
  saved = [line['step'] for line in metric_log.read_metrics(tmp_path / 'cut/teacher/metrics.jsonl')]
  assert {name: array.tobytes() for name, array in resumed.items()} == {
      name: array.tobytes() for name, array in close.items()}
  assert [step for step in saved if step > 7] == [10, 13, 13]


@pytest.mark.parametrize(('cpu', 'turns', 'loops'), [
    (True, 1, False), (True, 3, False), (False, 1, False), (False, 3, True)])
def test_what_a_cpu_repeats_is_no_loop_to_xla(monkeypatch, cpu, turns, loops):
  """XLA computes convolutions in a loop slowly there, be it of a single turn."""
  monkeypatch.setattr(devices, 'on_cpu', lambda: cpu)

  def body(carry, x):
    return 2 * carry + x, {'seen': carry}

  start, xs = jnp.float32(5), jnp.arange(1, turns + 1, dtype=jnp.float32)
  program = jax.make_jaxpr(lambda xs: devices.scan(body, start, xs))(xs)
  assert any(equation.primitive.name == 'scan' for equation in program.eqns) is loops
  carry, found = devices.scan(body, start, xs)
  assert carry == {1: 11.0, 3: 51.0}[turns]
  np.testing.assert_array_equal(found['seen'], [5.0, 11.0, 24.0][:turns])
