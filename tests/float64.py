"""Layers in float64 numpy, and gradients by differences, to hold trained methods against."""
import dataclasses

import jax
import lessons
import numpy as np
import tiny_nets

from kdih import reach, state, taps, tasks
from kdih.taps import Output
from kdih.teaching import Lesson


def of(tree):
  """Arrays of a tree in float64; of an `Output`, as {field: arrays}."""
  tree = dataclasses.asdict(tree) if isinstance(tree, Output) else tree
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


def started(options, lesson: Lesson):
  """A method and its variables, with no batch norm, bias or statistic as it begins."""
  method = lessons.make(options)

  def both(method, lesson):
    return (method.prepare(lesson) if method.prepares else 0, method(lesson))

  variables = method.init(jax.random.key(3), lesson, method=both)
  rng = np.random.default_rng(4)
  return method, jax.tree.map(
      lambda x: x + lessons.single(rng.uniform(0.1, 0.5, x.shape)) if x.ndim == 1 else x,
      dict(variables))


def applied(method, variables, lesson: Lesson, phase='__call__'):
  """(the mean loss, the collections after it)."""
  loss, changed = method.apply(variables, lesson, mutable=['batch_stats', 'memory'], method=phase)
  return loss.mean(), changed


def check(method, variables, lesson: Lesson, reference, phase='__call__'):
  """The loss is `reference`, and so are its gradients by every parameter and student's array.

  Gradients are compared along two random directions of each array.

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
    return applied(method, {**variables, 'params': params}, changed, phase)[0]

  student = {field.name: getattr(lesson.student, field.name)
             for field in dataclasses.fields(lesson.student)}
  found, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, student)
  point = of((params, student))
  np.testing.assert_allclose(found, reference(*point), rtol=2e-5)
  slopes = jax.tree.map(np.asarray, gradients)
  leaves, structure = jax.tree.flatten(point)
  rng, step = np.random.default_rng(6), 1e-6
  for i, gradient in enumerate(jax.tree.leaves(slopes)):
    for _ in range(2):
      way = rng.normal(size=leaves[i].shape)

      def along(distance, i=i, way=way):
        moved = [leaf + distance * way if j == i else leaf for j, leaf in enumerate(leaves)]
        return reference(*jax.tree.unflatten(structure, moved))

      np.testing.assert_allclose((gradient * way).sum(), (along(step) - along(-step)) / (2 * step),
                                 rtol=2e-3, atol=2e-5, err_msg=f'leaf {i}')


def reached(options, phase: str) -> set[str]:
  """Modules of student and method that the task of a phase reaches, all of their parameters."""
  method, images = lessons.make(options), lessons.lesson().images
  student, teacher = (tiny_nets.TinyNet(lessons.CLASSES, width) for width in (2, 4))
  names = ('stage1', 'stage2')
  pupil, frozen = (taps.initial(model, jax.random.key(0), images) for model in (student, teacher))
  lesson = dataclasses.replace(
      lessons.lesson(), student=taps.observe(student, pupil, images, names)[0],
      teacher=taps.observe(teacher, frozen, images, names)[0])
  variables = state.join(student=pupil, method=started(options, lesson)[1])
  teach = tasks.make_teach('teacher', teacher, names, None, ())
  task = tasks.student_task(student, names, method, teach, {'teacher': frozen},
                            preparing=phase == 'prepare')
  batch = {'image': images, 'label': lesson.labels, 'index': lesson.index,
           'epoch': np.float32(1), 'key': lesson.key}
  collections = {'batch_stats': variables['batch_stats']}
  flags = reach.reached(
      lambda params: task.loss(params, collections, task.frozen, batch, lesson.key)[0],
      variables['params'])
  return {f'{side}/{name}' for side, modules in flags.items() for name, tree in modules.items()
          if _all_or_none(tree)}


def _all_or_none(tree) -> bool:
  flags = jax.tree.leaves(tree)
  assert all(flags) == any(flags)
  return all(flags)
