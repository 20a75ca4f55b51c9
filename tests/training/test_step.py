"""The compiled steps: what learns, what stays frozen, what is reduced over the devices."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih.cohort.members import cohort_logits, make_teach
from kdih.data import sampling
from kdih.data.spec import DataSpec
from kdih.models import taps
from kdih.phases import heads as heads_lib, networks, student as student_lib
from kdih.phases.student import with_teacher
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices
from kdih.training import evaluation, state
from kdih.training.task import Batch, LiveSignals, Moment, Task
from tests.helpers import lessons
from tests.helpers.arrays import PREPROCESS, Arrays, compiled_step, fed
from tests.helpers.runs import read_config
from tests.helpers.slow import slow
from tests.helpers.tiny_nets import NoTaps

SGD = optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope='module')
def built():
  config = read_config('unused', 'unused')
  return networks.build(config, DataSpec('arrays', (8, 8, 1), 10))


@pytest.fixture(scope='module')
def frozen(built):
  return {'teacher': networks.initialise(built.teacher, jax.random.key(0), (8, 8, 1)),
          'heads': networks.initialise_heads(built, jax.random.key(1))}


def heads_task(built, frozen):
  teach = heads_lib.features_at_taps(built, built.teacher)
  return heads_lib.heads_task(
      built, frozen['teacher'], PREPROCESS, LiveSignals(teach), frozen['teacher'])


def student_task(built, frozen, name='dih'):
  method = built.methods[name]
  teach = make_teach(method.taught_by, built.teacher, tuple(built.teacher_taps), built.heads,
                     tuple(built.taps))
  return student_lib.student_task(built.student, tuple(built.student_taps), method,
                                  LiveSignals(teach), frozen, PREPROCESS)


def fresh_student(built, student=None):
  return state.join(student=networks.initialise(student or built.student, jax.random.key(2),
                                                (8, 8, 1)), method={})


def train(task, variables, num_steps=3):
  """(state, metrics of the last step) after some steps on 64 images at once."""
  loader = Arrays(200)
  step = compiled_step(task, SGD, loader)
  current = devices.replicate(state.create(jax.tree.map(np.array, variables), SGD, 0))
  subset = np.arange(200, dtype=np.int32)
  for feed in fed(sampling.train_batches(subset, 64, 0, 0, num_steps), [1] * num_steps):
    current, metrics = step(current, task.frozen, loader.resident, feed)
  return current, metrics


def paths(tree) -> set[str]:
  return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_training_the_heads_leaves_every_backbone_leaf_bit_identical(built, frozen):
  before = jax.tree.map(np.array, frozen['teacher'])
  task = heads_task(built, frozen)
  after, _ = train(task, frozen['heads'])
  jax.tree.map(lambda old, new: np.testing.assert_array_equal(
      old.view(np.uint32), np.asarray(new).view(np.uint32)), before, task.frozen['teacher'])
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), frozen['heads']['params'], after.params)
  assert all(jax.tree.leaves(changed))


def test_no_gradient_and_no_optimizer_slot_of_the_backbone_exists(built, frozen):
  after, _ = train(heads_task(built, frozen), frozen['heads'], num_steps=1)
  heads = {f"['{tap}']['{leaf}']" for tap in built.taps for leaf in ('kernel', 'bias')}
  assert paths(after.params) == heads
  assert {path[path.index("['"):] for path in paths(after.opt_state) if "['" in path} == heads
  assert not after.collections


def test_the_heads_loss_is_the_sum_of_their_cross_entropies_and_each_learns_alone(built, frozen):
  """The gradient of one head must not depend on the others."""
  task, loader = heads_task(built, frozen), Arrays(32)
  index = np.arange(32, dtype=np.int32)
  batch = Batch(PREPROCESS(loader.resident['image'], index, None),
                jnp.asarray(loader.resident['label']), index)

  def loss(params):
    key = jax.random.key(0)
    signal = task.signals.read(task.frozen, {}, batch, key)
    terms, _ = task.loss(params, {}, task.frozen, batch, signal, Moment(0.0, key, key))
    return lessons.mean(terms), terms

  params = frozen['heads']['params']
  (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  features = taps.observe(
      built.teacher, frozen['teacher'], batch.images, tuple(built.taps))[0].features
  losses = []
  for tap, feature in features.items():
    logits = np.asarray(feature).reshape(32, -1) @ params[tap]['kernel'] + params[tap]['bias'][None]
    probabilities = np.asarray(jax.nn.softmax(logits))
    losses.append(-np.log(probabilities[np.arange(32), batch.labels]).mean())
    assert terms[f'ce/{tap}'].mean() == pytest.approx(losses[-1], rel=1e-6)
    error = probabilities - np.eye(10)[np.asarray(batch.labels)]
    expected = np.asarray(feature).reshape(32, -1).T @ error / 32
    np.testing.assert_allclose(gradients[tap]['kernel'], expected, atol=1e-6)
  assert len(terms) == len(losses)
  assert float(total) == pytest.approx(sum(losses), rel=1e-6)


@pytest.mark.parametrize('method', [
    'dih', *(slow(name) for name in ('ce', 'kd'))])
def test_a_student_learns_and_its_teachers_do_not(built, frozen, method):
  before = jax.tree.map(np.array, frozen)
  variables = fresh_student(built)
  after, metrics = train(student_task(built, frozen, method), variables)
  jax.tree.map(np.testing.assert_array_equal, before, frozen)
  assert int(after.step) == 3
  assert np.isfinite(metrics['loss']).all()
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables['batch_stats'],
                       after.collections['batch_stats'])
  assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_buffers_of_the_state_are_donated(built, frozen):
  task, loader = student_task(built, frozen), Arrays(64)
  step = compiled_step(task, SGD, loader)
  variables = fresh_student(built)
  before = devices.replicate(state.create(variables, SGD, 0))
  feed = next(fed(sampling.train_batches(np.arange(64, dtype=np.int32), 64, 0, 0, 1), [1]))
  step(before, task.frozen, loader.resident, feed)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize('sync', [True, slow(False)])
def test_every_device_ends_with_the_same_state_and_metrics(built, frozen, sync):
  """`out_axes=None` returns the first device's results; here those of all devices are compared."""
  student = built.student.clone(axis_name=devices.AXIS if sync else None)
  task = student_task(dataclasses.replace(built, student=student), frozen)
  loader = Arrays(64)
  step = compiled_step(task, SGD, loader)
  per_device = jax.pmap(step.__wrapped__, axis_name=devices.AXIS, in_axes=(None, None, None, 0))
  initial = state.create(fresh_student(built, student), SGD, 0)
  feed = next(fed(sampling.train_batches(np.arange(64, dtype=np.int32), 64, 0, 0, 1), [1]))
  new, metrics = per_device(initial, task.frozen, loader.resident, feed)
  for leaf in jax.tree.leaves((new, metrics)):
    assert leaf.shape[0] == 4
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_the_teacher_runs_in_evaluation_mode_under_every_method(built, frozen):
  """Its statistics would otherwise depend on the batch: one image alone must say the same."""
  loader = Arrays(16)
  images = PREPROCESS(loader.resident['image'], np.arange(16), None)
  taps = tuple(built.taps)
  together = cohort_logits(built.teacher, built.heads, frozen, images, taps)
  alone = cohort_logits(built.teacher, built.heads, frozen, images[:1], taps)
  for member in together:
    np.testing.assert_allclose(together[member][:1], alone[member], atol=1e-5)


@pytest.mark.parametrize('count', [1, 3, 4, 50, 103])
def test_evaluation_counts_every_example_once(count):
  """Against numpy, on numbers of images that divide by neither batch nor devices."""
  loader = Arrays(count)
  task = teacher_task(NoTaps(num_classes=10), PREPROCESS)
  variables = networks.initialise(NoTaps(num_classes=10), jax.random.key(0), (8, 8, 1))
  evaluator = evaluation.Evaluator(
      task=task, loader=loader, subset=np.arange(count, dtype=np.int32), preprocess=PREPROCESS,
      batch_size=18, num_classes=10)
  measured = evaluator(variables, {})['teacher']
  images = ((loader.resident['image'] / 255 - 0.3) / 0.4).reshape(count, -1)
  dense = variables['params']['Dense_0']
  logits = images @ np.asarray(dense['kernel'], float) + np.asarray(dense['bias'])[None]
  labels = loader.resident['label']
  order = np.argsort(-logits, axis=-1)
  log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert measured['top1'] == pytest.approx((order[:, 0] == labels).mean())
  assert measured['top5'] == pytest.approx((order[:, :5] == labels[:, None]).any(-1).mean())
  assert measured['loss'] == pytest.approx(
      -log_probabilities[np.arange(count), labels].mean(), rel=1e-5)


def test_agreement_is_the_share_of_same_first_choices():
  loader = Arrays(30)
  model = NoTaps(num_classes=10)
  base = Task(
      loss=lambda *_: None, predict=lambda v, _, x: {'student': model.apply(v, x, train=False)},
      frozen={}, preprocess=PREPROCESS)
  first, second = (networks.initialise(model, jax.random.key(seed), (8, 8, 1)) for seed in (0, 1))
  compared = with_teacher(base, model, second)
  evaluator = evaluation.Evaluator(
      task=compared, loader=loader, subset=np.arange(30, dtype=np.int32), preprocess=PREPROCESS,
      batch_size=8, num_classes=10)
  measured = evaluator(first, compared.frozen)
  images = PREPROCESS(loader.resident['image'], np.arange(30), None)
  choices = [np.asarray(model.apply(v, images, train=False)).argmax(-1) for v in (first, second)]
  assert measured['student']['agreement'] == pytest.approx((choices[0] == choices[1]).mean())
  assert 'agreement' not in measured['teacher']


def test_few_classes_have_no_top5():
  evaluator = evaluation.Evaluator(
      task=teacher_task(NoTaps(num_classes=5), PREPROCESS), loader=Arrays(8, classes=5),
      subset=np.arange(8, dtype=np.int32), preprocess=PREPROCESS, batch_size=8, num_classes=5)
  variables = networks.initialise(NoTaps(num_classes=5), jax.random.key(0), (8, 8, 1))
  assert 'top5' not in evaluator(variables, {})['teacher']
