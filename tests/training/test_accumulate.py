"""A share of a batch in parts, and activations that are computed again: to save memory."""
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdih import errors
from kdih.cohort.members import make_teach
from kdih.config import fields
from kdih.data import augment
from kdih.data.spec import DataSpec
from kdih.distillation.signal import TeacherSignal
from kdih.models import registry, taps
from kdih.phases import networks, pipeline
from kdih.phases.student import student_task
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices
from kdih.training import accumulate as accumulate_lib, state
from kdih.training.task import LiveSignals, Moment, Task, blank_batch
from tests.helpers import lessons
from tests.helpers.arrays import Arrays, compiled_step, fed
from tests.helpers.runs import read_config
from tests.helpers.slow import slow
from tests.helpers.tiny_nets import NoTaps, TinyNet

SHAPE, SPEC = (8, 8, 1), DataSpec('arrays', (8, 8, 1), 10)
PLAIN = augment.make_preprocess(
    mean=(0.3,), std=(0.4,), padding=0, padding_mode='zeros', flip=False)
DEVICES, BATCH = 4, 32  # Eight images on each device.


class Normalised(nn.Module):
  """A batch norm, and a linear classifier."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=devices.AXIS)(images)
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def updated(task, variables, accumulate=1, remat=False, loader=None):
  """(state before, state after one update on `BATCH` images in order, metrics) in numpy."""
  loader, tx = loader or Arrays(BATCH), optax.sgd(0.1)
  step = compiled_step(task, tx, loader, 1.0, accumulate=accumulate, remat=remat)
  before = jax.device_get(state.create(variables, tx, 3))
  feed = next(fed(iter([{'index': np.arange(BATCH, dtype=np.int32)}]), [1]))
  resident = {**loader.resident, **task.signals.resident}
  after, metrics = step(devices.replicate(before), task.frozen, resident, feed)
  return before, *jax.device_get((after, metrics))


def by_hand(dense, images, labels):
  """Gradients of the mean cross-entropy of a linear classifier."""
  logits = images @ np.asarray(dense['kernel'], float) + np.asarray(dense['bias'], float)[None]
  soft = np.exp(logits - logits.max(1, keepdims=True))
  errors_ = soft / soft.sum(1, keepdims=True) - np.eye(10)[labels]
  return images.T @ errors_ / len(images), errors_.mean(0)


def initial(model):
  return networks.initialise(model, jax.random.key(0), SHAPE)


@pytest.mark.parametrize('parts', [1, 2, slow(8)])
def test_without_batch_norm_parts_give_the_update_of_the_whole(parts):
  loader = Arrays(BATCH)
  before, after, metrics = updated(
      teacher_task(NoTaps(10), PLAIN), initial(NoTaps(10)), parts, loader=loader)
  images = ((loader.resident['image'] / 255.0 - 0.3) / 0.4).reshape(BATCH, -1)
  dense = before.params['Dense_0']
  kernel, bias = by_hand(dense, images, loader.resident['label'])
  np.testing.assert_allclose(
      after.params['Dense_0']['kernel'], dense['kernel'] - 0.1 * kernel, atol=1e-6)
  np.testing.assert_allclose(after.params['Dense_0']['bias'], dense['bias'] - 0.1 * bias, atol=1e-6)
  choices = (images @ dense['kernel'] + dense['bias'][None]).argmax(1)
  assert metrics['top1'] == pytest.approx((choices == loader.resident['label']).mean())
  assert int(after.step) == 1


def test_a_batch_norm_sees_one_part_after_the_other():
  loader = Arrays(BATCH)
  model = Normalised(10)
  before, after, _ = updated(teacher_task(model, PLAIN), initial(model), 2, loader=loader)
  images = (loader.resident['image'] / 255.0 - 0.3) / 0.4
  # The first half of every device's share makes the first part.
  halves = images.reshape(DEVICES, 2, -1).transpose(1, 0, 2).reshape(2, -1)
  mean, variance = 0.0, 1.0
  for half in halves:
    mean, variance = 0.9 * mean + 0.1 * half.mean(), 0.9 * variance + 0.1 * half.var()
  found = after.collections['batch_stats']['BatchNorm_0']
  np.testing.assert_allclose(found['mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(found['var'], variance, rtol=1e-5)
  gradients = [by_hand(before.params['Dense_0'],
                    ((half - half.mean()) / np.sqrt(half.var() + 1e-5)).reshape(BATCH // 2, -1),
                    loader.resident['label'].reshape(DEVICES, 2, -1)[:, part].ravel())[0]
            for part, half in enumerate(halves)]
  np.testing.assert_allclose(
      after.params['Dense_0']['kernel'],
      before.params['Dense_0']['kernel'] - 0.1 * np.mean(gradients, axis=0), atol=1e-6)


@pytest.mark.slow
def test_a_memory_takes_in_every_image_of_every_part():
  config = read_config('unused', 'unused', '--config.student.methods=crd')
  built = networks.build(config, SPEC)
  method = built.methods['crd']
  frozen = {'teacher': initial(built.teacher), 'train_labels': jnp.arange(40) % 10}
  teach = make_teach('teacher', built.teacher, tuple(built.teacher_taps), built.heads, ())
  variables = state.join(
      student=initial(built.student),
      method=networks.initialise_method(built, 'crd', jax.random.key(1), 40))
  for parts in (1, 2):
    task = student_task(built.student, tuple(built.student_taps), method,
                        LiveSignals(teach, parts), frozen, PLAIN)
    before, after, _ = updated(task, variables, parts)
    for side in ('student', 'teacher'):
      old, new = (s.collections['memory']['method'][f'{side}_bank'] for s in (before, after))
      moved = (old != new).any(1)
      np.testing.assert_array_equal(moved, np.arange(40) < BATCH)
      np.testing.assert_allclose(np.linalg.norm(new[:BATCH], axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_methods_that_gather_what_they_compare_say_that_they_couple():
  names = tuple(fields.base().methods)
  config = read_config('unused', 'unused', f'--config.student.methods={",".join(names)}')
  built = networks.build(config, SPEC)
  for name, method in built.methods.items():
    options, gathered = config.methods[name], []
    lesson = dataclasses.replace(
        networks.blank_lesson(built, method, 2), gather=lambda x, g=gathered: g.append(x) or x)
    jax.eval_shape(lambda m=method, lesson=lesson: m.init(jax.random.key(0), lesson))
    if options.kind == 'combined':
      assert method.couples == any(built.methods[part].couples for part in options.methods), name
    else:  # CRD gathers what its memory takes in; no image's loss depends on another image.
      assert method.couples == bool(gathered and options.kind != 'crd'), name


def test_what_cannot_be_cut_into_parts_is_refused():
  config = read_config('unused', 'unused', '--config.compute.accumulate=3')
  with pytest.raises(errors.ConfigError, match='config.compute.accumulate: is 3, but the 8 '
                     'images of a device .* cannot be divided into 3 equal parts'):
    pipeline.check_devices(config)
  config = read_config('unused', 'unused', '--config.compute.accumulate=2',
                       '--config.student.methods=ce,sp')
  pipeline.check_devices(config)
  with pytest.raises(errors.ConfigError, match='accumulate: is 2, but the method sp '):
    networks.build(config, SPEC)


def kept(loss, params) -> int:
  """Bytes that the forward pass keeps for the backward pass."""
  left = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(left))


@pytest.mark.slow
def test_a_deep_model_keeps_less_where_it_computes_again():
  model = registry.create('resnet20', 10)
  variables = taps.abstract_variables(model, (32, 32, 3))
  task, batch = teacher_task(model, PLAIN), blank_batch(4, (32, 32, 3))
  moment = Moment(jnp.zeros(()), jax.random.key(0), jax.random.key(0))

  def loss(params):
    collections = jax.tree.map(lambda x: jnp.ones(x.shape), variables['batch_stats'])
    return lessons.mean(task.loss(
        params, {'batch_stats': collections}, {}, batch, TeacherSignal(), moment)[0])

  everything, products = (
      kept(f, variables['params']) for f in (loss, accumulate_lib.rematerialized(loss)))
  assert products < everything / 3
  # What the 22 convolutions of resnet20 say of four images: 7 + 7 + 7 and a projection each.
  assert products > 4 * 4 * (7 * 32 * 32 * 16 + 7 * 16 * 16 * 32 + 7 * 8 * 8 * 64)


@pytest.mark.slow
def test_computing_again_gives_the_same_gradients():
  model = TinyNet(10, axis_name=devices.AXIS)
  task, variables = teacher_task(model, PLAIN), initial(model)
  (_, plain, _), (_, again, _) = (updated(task, variables, remat=remat) for remat in (False, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, again)


WIDTH = 2 ** 14


def task_of(parts, seen):
  """A task in which a linear classifier learns what wide features of the teachers say."""
  def teach(frozen, images):
    seen.append(images.shape[0])
    return TeacherSignal(features={'tap': images.reshape(len(images), -1) @ frozen})

  def loss(params, collections, frozen, batch, signal, moment):
    logits = NoTaps(10).apply({'params': params}, batch.images, train=True)
    far = jnp.square(logits[:, :1] - signal.features['tap']).mean(1)
    return {'far': far}, (collections, {'student': logits})

  frozen = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
  return Task(loss=loss, predict=lambda *_: {}, frozen=frozen, preprocess=PLAIN,
              signals=LiveSignals(teach, parts))


@pytest.mark.slow
@pytest.mark.parametrize('loops', [False, True])
def test_live_teachers_see_one_part_of_a_batch_after_the_other(monkeypatch, loops):
  monkeypatch.setattr(devices, 'on_cpu', lambda: not loops)
  seen = []
  whole, parts = (updated(task_of(count, seen), initial(NoTaps(10)), count) for count in (1, 4))
  assert seen[0] == 8 and set(seen) == {8, 2}
  for one, other in zip(whole, parts, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_no_more_of_the_teacher_signal_than_of_one_part_is_in_memory(monkeypatch):
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)  # There parts are a loop.
  loader, tx = Arrays(BATCH), optax.sgd(0.1)
  before = devices.replicate(state.create(initial(NoTaps(10)), tx, 3))
  feed = next(fed(iter([{'index': np.arange(BATCH, dtype=np.int32)}]), [1]))

  def taken(parts):
    task = task_of(parts, [])
    step = compiled_step(task, tx, loader, accumulate=parts)
    compiled = step.lower(before, task.frozen, loader.resident, feed).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  share = BATCH // DEVICES * WIDTH * 4  # Bytes of the features of a device's share of the batch.
  assert taken(1) >= share
  assert taken(8) < share
