"""Layers in float64 numpy, and gradients by differences, to hold trained methods against."""
import dataclasses

import jax
import numpy as np

from kdih.cohort.members import make_teach
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.distillation.signal import TeacherSignal
from kdih.models import taps
from kdih.models.taps import Output
from kdih.phases.student import student_task
from kdih.runtime import devices
from kdih.training import optimizer, state
from kdih.training.task import Batch, LiveSignals, Moment
from tests.helpers import lessons, tiny_nets
from tests.helpers.arrays import PREPROCESS


def of(tree):
  """Arrays of a tree in float64; of an `Output` or a signal, as {field: arrays}."""
  tree = _fields(tree) if isinstance(tree, Output | TeacherSignal) else tree
  return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


def conv(x, kernel, stride=1, padding=0):
  """[batch, H, W, C] with a kernel [height, width, C, features], zeros on all four sides."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  height, width = kernel.shape[:2]
  return np.stack([np.stack([
      np.einsum('bijc,ijcd->bd', x[:, r:r + height, c:c + width], kernel)
      for c in range(0, x.shape[2] - width + 1, stride)], 1)
      for r in range(0, x.shape[1] - height + 1, stride)], 1)


def batch_norm(x, params, stats=None):
  """By the statistics of the batch, or by `stats`."""
  mean, var = ((x.mean((0, 1, 2)), x.var((0, 1, 2))) if stats is None
               else (stats['mean'], stats['var']))
  return (x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias']


def pool(x, side):
  """Adaptive average pooling to [batch, side, side, C]: window i is floor(i n / side) up to
  ceil((i + 1) n / side)."""
  def windows(n):
    return [slice(i * n // side, int(np.ceil((i + 1) * n / side))) for i in range(side)]
  return np.stack([np.stack([x[:, r, c].mean((1, 2)) for c in windows(x.shape[2])], 1)
                   for r in windows(x.shape[1])], 1)


def log_softmax(z):
  """Over the last axis."""
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(z):
  """With the labels of `lessons`, [batch]."""
  return -log_softmax(z)[np.arange(lessons.BATCH), lessons.LABELS]


def started(options, lesson: Lesson, context: Context | None = None):
  """A method and its variables, with no batch norm, bias or statistic as it begins."""
  method = lessons.make(options, context)
  variables = _compiled(lambda: _initial(method, lesson))()
  rng = np.random.default_rng(5)
  return method, jax.tree.map(
      lambda x: x + lessons.single(rng.uniform(0.1, 0.5, x.shape)) if x.ndim == 1 else x, variables)


def _initial(method, lesson: Lesson):
  def both(method, lesson):
    return (method.prepare(lesson) if method.prepares else 0, method(lesson))

  return dict(method.init(jax.random.key(3), lesson, method=both))


def _compiled(function):
  """Quickly, to a slow program that runs a few times."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def applied(method, variables, lesson: Lesson, phase='__call__'):
  """(the mean loss, the collections after it)."""
  return _compiled(lambda variables: _apply(method, variables, lesson, phase))(variables)


def _apply(method, variables, lesson: Lesson, phase: str):
  said, changed = method.apply(variables, lesson, mutable=['batch_stats', 'memory'], method=phase)
  return (said.mean() if phase == 'term' else lessons.mean(said)), changed


def apart(options, variables, lesson: Lesson, phase='__call__'):
  """The mean loss of as many devices as there are images, each of which has one."""
  method = lessons.make(options, Context(axis_name=devices.AXIS))

  def loss(student, teacher, labels):
    own = dataclasses.replace(lesson, student=student, teacher=teacher, labels=labels)
    return _apply(method, variables, own, phase)[0]

  batch = (lesson.student, lesson.teacher, lesson.labels)
  parts = jax.tree.map(lambda x: x[:, None], batch)
  return _compiled(jax.vmap(loss, axis_name=devices.AXIS))(*parts).mean()


def check(method, variables, lesson: Lesson, reference, phase='__call__'):
  """The loss is `reference`, and so are its gradients by every parameter and student's array.

  Gradients are compared along a random direction of each array.

  Args:
    method: as `started` makes it.
    variables: likewise.
    lesson: to apply it to.
    reference: (params, student, both in float64 and the latter as {field: arrays}) to the loss.
    phase: '__call__' or 'prepare'.
  """
  params = variables.get('params', {})

  def loss(params, student):
    changed = dataclasses.replace(lesson, student=Output(**student))
    return _apply(method, {**variables, 'params': params}, changed, phase)[0]

  student = _fields(lesson.student)
  found, gradients = _compiled(jax.value_and_grad(loss, (0, 1)))(params, student)
  point = of((params, student))
  np.testing.assert_allclose(found, reference(*point), rtol=2e-5)
  slopes = jax.tree.map(np.asarray, gradients)
  leaves, structure = jax.tree.flatten(point)
  rng, step = np.random.default_rng(6), 1e-6
  for i, gradient in enumerate(jax.tree.leaves(slopes)):
    way = rng.normal(size=leaves[i].shape)

    def along(distance, i=i, way=way):
      moved = [leaf + distance * way if j == i else leaf for j, leaf in enumerate(leaves)]
      return reference(*jax.tree.unflatten(structure, moved))

    np.testing.assert_allclose((gradient * way).sum(), (along(step) - along(-step)) / (2 * step),
                               rtol=2e-3, atol=2e-5, err_msg=f'leaf {i}')


def reached(options, phase: str) -> set[str]:
  """Modules of student and method that the task of a phase reaches, all of their parameters."""
  method, lesson, names = lessons.make(options), lessons.lesson(), ('stage1', 'stage2')
  student, teacher = (tiny_nets.TinyNet(lessons.CLASSES, width) for width in (2, 4))
  pupil, frozen = (_blank(taps.initial, model, lesson.key, lesson.images)
                   for model in (student, teacher))
  live = LiveSignals(make_teach('teacher', teacher, names, None, ()))
  outputs = {'student': _blank(_said, student, pupil, lesson.images, names),
             'teacher': _blank(live.blank, {'teacher': frozen}, lessons.BATCH, (8, 8, 1))}
  variables = state.join(
      student=pupil, method=_blank(_initial, method, dataclasses.replace(lesson, **outputs)))
  task = student_task(student, names, method, live, {'teacher': frozen}, PREPROCESS,
                      preparing=phase == 'prepare')
  collections = {'batch_stats': variables['batch_stats']}
  batch = Batch(lesson.images, lesson.labels, lesson.index)
  moment = Moment(np.float32(1), lesson.key, lesson.key)

  def loss(params):
    signal = live.read(task.frozen, {}, batch, lesson.key)
    return lessons.mean(
        task.loss(params, collections, task.frozen, batch, signal, moment)[0])

  flags = optimizer.gradient_mask(loss, variables['params'])
  return {f'{side}/{name}' for side, modules in flags.items() for name, tree in modules.items()
          if _all_or_none(tree)}


def _blank(function, *args):
  """What it returns, all zeros; nothing is computed."""
  shapes = jax.eval_shape(lambda: function(*args))
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _said(model, variables, images, names):
  return taps.observe(model, variables, images, names)[0]


def _fields(output: Output | TeacherSignal):
  return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


def _all_or_none(tree) -> bool:
  flags = jax.tree.leaves(tree)
  assert all(flags) == any(flags)
  return all(flags)
