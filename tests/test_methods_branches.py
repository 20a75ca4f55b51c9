"""TOFD and MHKD: classifiers on features of both sides, against their formulas in float64."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import lessons
import numpy as np
import pytest

from kdih import errors, parallel, reach
from kdih.teaching import Context, Lesson

MHKD = dict(kind='mhkd', alpha=0.3, temperature=4.0, beta=0.5, width=3)
TOFD = dict(kind='tofd', temperature=3.0, alpha=0.05, beta=0.03)
# Three taps, the last but one already of one pixel.
STUDENT_SHAPES = ((5, 5, 2), (1, 1, 3), (1, 1, 4))
TEACHER_SHAPES = ((4, 4, 3), (2, 2, 4), (1, 1, 6))
ROWS = range(lessons.BATCH)
leaves = jax.tree.leaves
# Without XLA's optimisation, which takes longer than what is computed here.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def lesson(**changes) -> Lesson:
  return lessons.lesson(STUDENT_SHAPES, TEACHER_SHAPES, **changes)


def started(options):
  """The method, and variables in which no batch norm is the identity."""
  method = lessons.make(options)

  def both(method, batch):
    return (method.prepare(batch) if method.prepares else 0, method(batch))

  variables = compiled(lambda: method.init(jax.random.key(3), lesson(), method=both))()
  rng = np.random.default_rng(4)
  return method, jax.tree.map(
      lambda x: x + lessons.single(rng.uniform(0.1, 0.5, x.shape)) if x.ndim == 1 else x, variables)


def in_float64(tree):
  return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(z):
  return -log_softmax(z)[ROWS, lessons.LABELS]


def kd(z, t, alpha, temperature):
  student, teacher = log_softmax(z / temperature), log_softmax(t / temperature)
  kl = (np.exp(teacher) * (teacher - student)).sum(-1)
  return (1 - alpha) * cross_entropy(z) + alpha * temperature**2 * kl


def linear(x, params):
  return x @ params['kernel'] + params['bias']


def conv(x, kernel, stride=1):
  """A convolution that pads by half the kernel; of one input channel where it is depthwise."""
  size = kernel.shape[0]
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  high = range(0, x.shape[1] - size + 1, stride)
  wide = range(0, x.shape[2] - size + 1, stride)
  depthwise = kernel.shape[2] == 1 != x.shape[3]
  rule = 'bijc,ijc->bc' if depthwise else 'bijc,ijcd->bd'
  kernel = kernel[:, :, 0] if depthwise else kernel
  return np.stack([np.stack([np.einsum(rule, x[:, r:r + size, c:c + size], kernel)
                             for c in wide], 1) for r in high], 1)


def normalised_relu(x, params, stats=None):
  """Batch norm by the batch, or by `stats`, and ReLU."""
  mean, var = ((x.mean((0, 1, 2)), x.var((0, 1, 2))) if stats is None
               else (stats['mean'], stats['var']))
  return np.maximum((x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias'], 0)


def mhkd_head(x, params):
  for i in (0, 1):
    x = normalised_relu(conv(x, params[f'Conv_{i}']['kernel']), params[f'BatchNorm_{i}'])
  return linear(np.maximum(linear(x.mean((1, 2)), params['Dense_0']), 0), params['Dense_1'])


def mhkd_loss(params, batch: Lesson, features):
  loss = kd(*(np.asarray(model.logits, float) for model in (batch.student, batch.teacher)), 0.3, 4)
  for i, (student, teacher) in enumerate(
      zip(features, batch.teacher.features.values(), strict=True), 1):
    taught = mhkd_head(np.asarray(teacher, float), params[f'teacher{i}'])
    loss = loss + cross_entropy(taught)
    loss = loss + 0.5 * kd(mhkd_head(student, params[f'student{i}']), taught, 0.3, 4)
  return loss


def tofd_branches(features, params, stats=None):
  """[(g, z)] of all taps but the last."""
  branches = []
  for i, x in enumerate(features[:-1], 1):
    for j in range(1, len(features) - i + 1):
      block = f'branch{i}_block{j}'
      for half, stride in ((0, 2), (1, 1)):
        x = conv(x, params[block][f'Conv_{2 * half}']['kernel'], stride)
        x = conv(x, params[block][f'Conv_{2 * half + 1}']['kernel'])
        norm = f'BatchNorm_{half}'
        x = normalised_relu(x, params[block][norm], stats and stats[block][norm])
    branches.append((x.mean((1, 2)), linear(x.mean((1, 2)), params[f'branch{i}_classifier'])))
  return branches


def tofd_loss(variables, batch: Lesson, features):
  params = variables['params']
  teacher = [np.asarray(feature, float) for feature in batch.teacher.features.values()]
  student, teacher = (
      [*branches, (np.asarray(output.embedding, float), np.asarray(output.logits, float))]
      for branches, output in (
          (tofd_branches(features, params['student']), batch.student),
          (tofd_branches(teacher, params['teacher'], variables['batch_stats']['teacher']),
           batch.teacher)))
  loss = 0.0
  for i, ((g, z), (g_taught, z_taught)) in enumerate(zip(student, teacher, strict=True), 1):
    w = params[f'link{i}']['kernel']
    soft = -(np.exp(log_softmax(z_taught / 3)) * log_softmax(z / 3)).sum(-1)
    loss += (cross_entropy(z) + soft).mean()
    loss += 0.05 * np.sqrt(((g @ w - g_taught)**2).sum())
    loss += 0.03 * (np.sqrt(((w @ w.T - np.eye(len(w)))**2).sum())
                    + np.sqrt(((w.T @ w - np.eye(w.shape[1]))**2).sum()))
  return loss


@pytest.fixture(scope='module')
def mhkd():
  return started(MHKD)


@pytest.fixture(scope='module')
def tofd():
  return started(TOFD)


def applied(method, variables, batch, phase='__call__'):
  return method.apply(variables, batch, mutable=['batch_stats', 'memory'], method=phase)


def loss_of(method, variables, batch, phase='__call__'):
  return compiled(lambda variables: applied(method, variables, batch, phase)[0])(variables)


def student_features(batch: Lesson, precision=float):
  return [np.asarray(feature, precision) for feature in batch.student.features.values()]


def with_first_feature(batch: Lesson, feature) -> Lesson:
  features = {**batch.student.features, 'stage1': feature}
  return dataclasses.replace(
      batch, student=dataclasses.replace(batch.student, features=features))


def test_mhkd_is_its_formula(mhkd):
  method, variables = mhkd
  loss = loss_of(method, variables, lesson())
  expectation = mhkd_loss(in_float64(variables)['params'], lesson(), student_features(lesson()))
  np.testing.assert_allclose(loss, expectation, rtol=1e-5)


def test_mhkd_teaches_the_students_features(mhkd):
  method, variables = mhkd
  batch, params = lesson(), in_float64(variables)['params']
  rest = student_features(batch)[1:]
  found = compiled(jax.grad(lambda f: applied(
      method, variables, with_first_feature(batch, f))[0].sum()))(batch.student.features['stage1'])
  numerical = lessons.numerical_gradient(
      lambda f: mhkd_loss(params, batch, [f, *rest]).sum(), student_features(batch)[0])
  np.testing.assert_allclose(found, numerical, rtol=1e-3, atol=1e-4)


def test_mhkds_teacher_heads_learn_from_the_labels_alone(mhkd):
  method, variables = mhkd
  batch = lesson()

  def gradients(method):
    return compiled(jax.grad(lambda params: applied(
        method, {**variables, 'params': params}, batch)[0].sum()))(variables['params'])

  found, other = gradients(method), gradients(lessons.make(MHKD, beta=5.0, alpha=0.9))
  for i in (1, 2, 3):
    np.testing.assert_array_equal(found[f'teacher{i}']['Dense_1']['kernel'],
                                  other[f'teacher{i}']['Dense_1']['kernel'])
    assert np.abs(found[f'teacher{i}']['Conv_0']['kernel']).max() > 1e-3
    assert not np.allclose(found[f'student{i}']['Dense_1']['kernel'],
                           other[f'student{i}']['Dense_1']['kernel'])
  features = np.asarray(batch.teacher.features['stage1'], float)
  params = in_float64(variables)['params']['teacher1']

  def labels_loss(bias):
    changed = {**params, 'Dense_1': {**params['Dense_1'], 'bias': bias}}
    return cross_entropy(mhkd_head(features, changed)).sum()

  numerical = lessons.numerical_gradient(labels_loss, params['Dense_1']['bias'])
  np.testing.assert_allclose(found['teacher1']['Dense_1']['bias'], numerical, atol=1e-5)


def test_tofd_is_its_formula(tofd):
  method, variables = tofd
  loss = loss_of(method, variables, lesson())
  expectation = tofd_loss(in_float64(variables), lesson(), student_features(lesson()))
  np.testing.assert_allclose(loss, expectation, rtol=1e-5)


def test_tofd_prepares_the_teachers_branches_by_the_labels(tofd):
  method, variables = tofd
  loss = loss_of(method, variables, lesson(), phase='prepare')
  teacher = [np.asarray(feature, float) for feature in lesson().teacher.features.values()]
  branches = tofd_branches(teacher, in_float64(variables)['params']['teacher'])
  np.testing.assert_allclose(loss, sum(cross_entropy(z) for _, z in branches), rtol=1e-5)


def test_tofd_teaches_the_students_features(tofd):
  method, variables = tofd
  batch, rest = lesson(), student_features(lesson())[1:]
  found = compiled(jax.grad(lambda f: applied(
      method, variables, with_first_feature(batch, f))[0]))(batch.student.features['stage1'])
  numerical = lessons.numerical_gradient(
      lambda f: tofd_loss(in_float64(variables), batch, [f, *rest]), student_features(batch)[0])
  np.testing.assert_allclose(found, numerical, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('phase, moved', [
    ('prepare', {'teacher'}), ('__call__', {'student', 'link1', 'link2', 'link3'})])
def test_tofd_moves_what_the_phase_is_for(tofd, phase, moved):
  method, variables = tofd

  def loss(params):
    value, changed = applied(method, {**variables, 'params': params}, lesson(), phase)
    return value.mean(), changed['batch_stats']

  gradients, stats = compiled(jax.grad(loss, has_aux=True))(variables['params'])
  assert {name for name, tree in gradients.items() if any(map(np.any, leaves(tree)))} == moved
  reached = reach.reached(lambda params: loss(params)[0], variables['params'])
  assert {name for name, tree in reached.items() if any(leaves(tree))} == moved
  assert all(all(leaves(reached[name])) for name in moved)
  for side, before in variables['batch_stats'].items():
    same = [np.array_equal(*pair) for pair in zip(leaves(stats[side]), leaves(before), strict=True)]
    assert not any(same) if side in moved else all(same)


def test_tofds_branches_end_as_wide_as_the_deepest_tap(tofd):
  _, variables = tofd
  params = variables['params']
  assert params['student']['branch1_block2']['Conv_3']['kernel'].shape == (1, 1, 3, 4)
  assert params['teacher']['branch1_classifier']['kernel'].shape == (6, lessons.CLASSES)
  assert params['link1']['kernel'].shape == (4, 6)
  assert params['link3']['kernel'].shape == (5, 8)
  assert 'branch3_classifier' not in params['student']


def test_tofd_without_any_difference_has_a_gradient():
  one = lessons.lesson(STUDENT_SHAPES, STUDENT_SHAPES, teacher=lessons.output(1, STUDENT_SHAPES))
  nothing = jax.tree.map(jnp.zeros_like, one.student.features)
  blank = dataclasses.replace(one.student, features=nothing, embedding=jnp.zeros((4, 5)))
  one = dataclasses.replace(one, student=blank, teacher=blank)
  method = lessons.make(TOFD)
  variables = compiled(lambda: method.init(jax.random.key(0), one))()
  gradients = compiled(jax.grad(lambda params: applied(
      method, {**variables, 'params': params}, one)[0]))(variables['params'])
  assert all(np.isfinite(leaf).all() for leaf in leaves(gradients))


@pytest.mark.parametrize('options', [MHKD, TOFD], ids=['mhkd', 'tofd'])
def test_four_devices_and_one_agree(options, request):
  """With batch norms that see the whole batch."""
  whole = lesson()
  method = lessons.make(options, Context(axis_name=parallel.AXIS))
  single, variables = request.getfixturevalue(options['kind'])

  def loss(params, student, teacher, labels, method, gather):
    batch = Lesson(whole.images, labels, student, teacher, gather=gather)
    return applied(method, {**variables, 'params': params}, batch)[0].mean()

  def on_one(*parts):
    value, gradient = jax.value_and_grad(loss)(
        variables['params'], *parts, method, parallel.gather)
    return jax.lax.pmean((value, gradient), parallel.AXIS)

  parts = tuple(jax.tree.map(lambda x: x.reshape(4, 1, *x.shape[1:]), fields(part))
                for part in (whole.student, whole.teacher))
  found = jax.pmap(lambda student, teacher, labels: on_one(
      type(whole.student)(**student), type(whole.teacher)(**teacher), labels),
      axis_name=parallel.AXIS, out_axes=None)(*parts, whole.labels.reshape(4, 1))
  expectation = compiled(lambda: jax.value_and_grad(loss)(
      variables['params'], whole.student, whole.teacher, whole.labels, single, lambda x: x))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
               found, expectation)


def fields(output):
  return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


@pytest.mark.parametrize('options, changes, message', [
    (MHKD, {'width': 0}, 'width: 0 is not a whole number above 0'),
    (MHKD, {'beta': 0.0}, 'beta: 0.0 is not above 0'),
    (MHKD, {'alpha': 1.5}, "alpha: 1.5 is outside [0, 1]; 0.1 is the paper's"),
    (MHKD, {'alpha': (0.1, 0.2)}, 'alpha: is (0.1, 0.2); give one number, for the one teacher'),
    (MHKD, {'temperature': 0.0}, "temperature: 0.0 is not above 0; 5 is the paper's"),
    (TOFD, {'temperature': -1.0}, "temperature: -1.0 is not above 0; 5 is the paper's"),
    (TOFD, {'temperature': (1.0,)}, 'temperature: is (1.0,); give one number, for the one teacher'),
    (TOFD, {'alpha': -0.1}, 'alpha: -0.1 is below 0 or not finite'),
    (TOFD, {'beta': float('inf')}, 'beta: inf is below 0 or not finite')])
def test_options_out_of_range_are_refused(options, changes, message):
  with pytest.raises(errors.ConfigError) as caught:
    lessons.make(options, **changes)
  assert str(caught.value) == f'config.methods.mine.{message}'


@pytest.mark.parametrize('options', [MHKD, TOFD], ids=['mhkd', 'tofd'])
def test_models_of_unequal_taps_are_refused(options):
  with pytest.raises(ValueError, match='the student has 2 taps .* and the teacher 3'):
    lessons.make(options).init(jax.random.key(0), lessons.lesson(
        teacher_shapes=TEACHER_SHAPES))


def test_tofd_needs_a_tap_before_the_deepest():
  with pytest.raises(ValueError, match='the models have one tap each'):
    lessons.make(TOFD).init(jax.random.key(0), lessons.lesson(((4, 4, 3),), ((4, 4, 6),)))
