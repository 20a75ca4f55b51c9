"""DML, TAKD and sums of methods: peers, assistants and parts."""
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdih import errors, main
from kdih.cohort import frozen_teacher
from kdih.distillation.method import Context
from kdih.distillation.signal import TeacherSignal
from kdih.models import taps as taps_lib
from kdih.phases import student as student_lib
from kdih.phases.exported_variables import load_model
from kdih.training import optimizer, orbax_files, state
from kdih.training.task import NO_TEACHER, Batch, Moment
from tests.helpers import float64, lessons, tiny_nets
from tests.helpers.arrays import PREPROCESS
from tests.helpers.runs import exported, read_config

DML = dict(kind='dml', peers=('one', 'other'), alpha=0.3, temperature=2.0)
TAKD = dict(kind='takd', chain=('one', 'other'), alpha=0.3, temperature=2.0)
KD = dict(kind='kd', alpha=0.1, temperature=5.0, scale='one', gain=1.0, standardise=False)
CRD = dict(kind='crd', width=6, negatives=10, temperature=0.5, momentum=0.3, cross_entropy=1.0,
           weight=0.8)
ENTRIES = {
    'ce': dict(kind='ce'), 'kd': KD, 'crd': CRD, 'takd': TAKD,
    'dih': dict(kind='dih', alpha=0.1, temperature=5.0, reduction='sum', members='cohort',
                cross_entropy='per_branch', weights='equal', gain=1.0, standardise=False),
    'tofd': dict(kind='tofd', temperature=3.0, alpha=0.05, beta=0.03),
    'ft': dict(kind='ft', rate=0.5, cross_entropy=1.0, weight=200.0),
    'sum': dict(kind='combined', methods=('kd', 'crd'), weights=(1.0, 2.0))}
SUM = dict(kind='combined', methods=('ce', 'kd', 'crd'), weights=(0.5, 2.0, 3.0))
TRAIN_LABELS = jnp.array([4, 0, 2, 2, 1, 3, 0])
ONE_HOT = np.eye(lessons.CLASSES)[lessons.LABELS]


def context(model=None) -> Context:
  """One with linear peers, or `model`, and ENTRIES."""
  model = model or tiny_nets.NoTaps(lessons.CLASSES)
  return Context(model=lambda name: model,
                 method=lambda name: lessons.make(ENTRIES[name], context()))


def softmax(z):
  powers = np.exp(z - z.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def kd(z, t, alpha, temperature):
  p, q = softmax(z / temperature), softmax(t / temperature)
  kl = (q * np.log(q / p)).sum(-1)
  return (1 - alpha) * float64.cross_entropy(z) + alpha * temperature**2 * kl


@pytest.fixture(scope='module')
def mutual():
  """The method, its variables, and the logits of the student and of two peers in float64."""
  method, batch = lessons.make(DML, context()), lessons.lesson(teacher=TeacherSignal())
  variables = lessons.initial(method, batch)
  flat = np.asarray(batch.images, float).reshape(lessons.BATCH, -1)
  peers = [flat @ np.asarray(layer['kernel'], float) + np.asarray(layer['bias'], float)
           for layer in (variables['params'][f'peer{i}']['Dense_0'] for i in (1, 2))]
  return method, variables, [np.asarray(batch.student.logits, float), *peers]


def test_dml_is_its_formula(mutual):
  method, variables, logits = mutual
  expectation = 0.0
  for i, z in enumerate(logits):
    others = logits[:i] + logits[i + 1:]
    expectation = expectation + sum(kd(z, other, 0.3, 2.0) for other in others) / 2
  found = lessons.total(method.apply(variables, lessons.lesson(teacher=TeacherSignal())))
  np.testing.assert_allclose(found, expectation, rtol=1e-5)


def test_in_dml_what_the_others_say_is_a_constant(mutual):
  """d/dz = (1 - alpha) (p - y) + alpha T mean_j (p_T(z) - p_T(z_j))."""
  method, variables, logits = mutual
  batch = lessons.lesson(teacher=TeacherSignal())
  expectations = []
  for i, z in enumerate(logits):
    away = [softmax(z / 2) - softmax(other / 2) for other in logits[:i] + logits[i + 1:]]
    expectations.append(0.7 * (softmax(z) - ONE_HOT) + 0.3 * 2 * np.mean(away, axis=0))

  def loss(student_logits, params):
    student = taps_lib.Output(student_logits, {})
    alone = lessons.lesson(teacher=TeacherSignal(), student=student)
    return lessons.total(method.apply({'params': params}, alone)).sum()

  student, params = jax.grad(loss, argnums=(0, 1))(batch.student.logits, variables['params'])
  np.testing.assert_allclose(student, expectations[0], atol=1e-5)
  for i in (1, 2):
    np.testing.assert_allclose(params[f'peer{i}']['Dense_0']['bias'], expectations[i].sum(0),
                               atol=1e-5)


@pytest.mark.slow
def test_peers_are_models_of_their_own_in_training_mode(mutual):
  _, variables, logits = mutual
  assert not np.allclose(logits[1], logits[2])
  method, batch = lessons.make(DML, context(tiny_nets.TinyNet(lessons.CLASSES))), lessons.lesson()
  variables = lessons.initial(method, batch)
  _, changed = method.apply(variables, batch, mutable=['batch_stats', 'memory'])
  for peer in ('peer1', 'peer2'):
    assert not np.array_equal(changed['batch_stats'][peer]['BatchNorm_0']['mean'],
                              variables['batch_stats'][peer]['BatchNorm_0']['mean'])
  reached = optimizer.gradient_mask(
      lambda params: lessons.mean(method.apply(
          {**variables, 'params': params}, batch, mutable=['batch_stats'])[0]),
      variables['params'])
  assert all(jax.tree.leaves(reached))


class Dropping(nn.Module):
  """A linear classifier of what is left of the images."""
  num_classes: int

  @nn.compact
  def __call__(self, images, train):
    flat = images.reshape(len(images), -1)
    return nn.Dense(self.num_classes)(nn.Dropout(0.9, deterministic=not train)(flat))


def test_every_peer_drops_out_on_its_own():
  model, batch = Dropping(lessons.CLASSES), lessons.lesson(teacher=TeacherSignal())
  method = lessons.make(DML, context(model))
  variables = state.join(student=taps_lib.initial(model, jax.random.key(0), batch.images),
                         method=lessons.initial(method, batch))
  task = student_lib.student_task(model, (), method, NO_TEACHER, {}, PREPROCESS)
  examples = Batch(batch.images, batch.labels, batch.index)

  def unread(seed):  # Inputs that no image of the batch had left, by network.
    moment = Moment(0.0, batch.key, jax.random.key(seed))
    gradients = jax.grad(lambda params: lessons.mean(task.loss(
        params, {}, {}, examples, TeacherSignal(), moment)[0]))(variables['params'])
    networks = {'student': gradients['student'], **gradients['method']}
    return {name: tuple(np.flatnonzero((params['Dense_0']['kernel'] == 0).all(1)))
            for name, params in networks.items()}

  patterns = [pattern for seed in (0, 1) for pattern in unread(seed).values()]
  assert len(set(patterns)) == 6 and min(map(len, patterns)) > 10


def test_takd_is_kd_at_every_link():
  method, batch = lessons.make(TAKD), lessons.lesson()
  expectation = kd(*(np.asarray(model.logits, float) for model in (batch.student, batch.teacher)),
                   0.3, 2.0)
  np.testing.assert_allclose(lessons.total(method.apply({}, batch)), expectation, rtol=1e-5)
  assert method.assistants == ('one', 'other')


@pytest.mark.slow
def test_every_link_of_a_chain_is_taught_by_the_one_before(
    tmp_path, finished, digits_dir, monkeypatch):
  taught_by = []

  def recorded(student, taps, method, signals, frozen, *args, **kwargs):
    if not isinstance(jax.tree.leaves(frozen)[0], jax.ShapeDtypeStruct):  # As for the memory check.
      taught_by.append((student.width, frozen['teacher']))
    return student_task(student, taps, method, signals, frozen, *args, **kwargs)

  student_task = student_lib.student_task
  monkeypatch.setattr(student_lib, 'student_task', recorded)
  monkeypatch.setattr(frozen_teacher, 'fold', lambda model, variables, *_: variables)
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  config = read_config(tmp_path, digits_dir, '--config.student.methods=takd')
  assert config.methods.takd.chain == ('tests.helpers.tiny_nets:TinyNet', 'student')
  main.run(config, tmp_path)
  phases = ['teacher', 'student/takd/assistant1', 'student/takd/assistant2']
  assert [width for width, _ in taught_by] == [4, 2, 2]
  for phase, (_, variables) in zip(phases, taught_by, strict=True):
    jax.tree.map(np.testing.assert_array_equal, variables,
                 orbax_files.restore(tmp_path / phase / 'variables'))
  ends = [exported(tmp_path, phase) for phase in (*phases[1:], 'student/takd')]
  assert all(not np.array_equal(ends[1][path], ends[2][path]) for path in ends[2]
             if 'kernel' in path)
  for phase in (*phases[1:], 'student/takd'):
    result = json.loads((tmp_path / phase / 'result.json').read_text())
    assert result['steps'] == 6 and result['method']['kind'] == 'takd'
    model, _, _ = load_model(
        tmp_path / phase / 'variables', model='tests.helpers.tiny_nets:TinyNet')
    assert model.width == {'student/takd/assistant1': 4}.get(phase, 2)


def summed(options=SUM):
  method = lessons.make(options, context())
  batch = lessons.lesson(train_labels=TRAIN_LABELS)
  return method, batch, lessons.initial(method, batch)


@pytest.mark.slow
def test_a_sum_leaves_out_the_labels_of_a_feature_method():
  method, batch, variables = summed()
  terms, changed = method.apply(variables, batch, mutable=['memory'])
  inner = {name: tree['parts_2'] for name, tree in variables.items()}
  term, alone = lessons.make(CRD).apply(inner, batch, mutable=['memory'], method='term')
  logits = [np.asarray(model.logits, float) for model in (batch.student, batch.teacher)]
  expectation = (0.5 * float64.cross_entropy(logits[0]) + 2 * kd(*logits, 0.1, 5.0)).mean()
  np.testing.assert_allclose(
      lessons.mean(terms), expectation + 3 * 0.8 * np.asarray(term, float).mean(), rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, changed['memory']['parts_2'], alone['memory'])


@pytest.mark.slow
def test_the_gradient_of_a_sum_reaches_the_parts():
  method, batch, variables = summed()

  def loss(params):
    return lessons.mean(
        method.apply({**variables, 'params': params}, batch, mutable=['memory'])[0])

  def term(params):
    inner = {'params': params['parts_2'], 'memory': variables['memory']['parts_2']}
    return lessons.make(CRD).apply(inner, batch, mutable=['memory'], method='term')[0].mean()

  jax.tree.map(lambda found, alone: np.testing.assert_allclose(found, 2.4 * alone, rtol=1e-4,
                                                               atol=1e-6),
               jax.grad(loss)(variables['params']), jax.grad(term)(variables['params']))


def test_a_part_that_is_named_twice_counts_twice():
  batch = lessons.lesson()
  once, twice = (lessons.make(SUM, context(), methods=names, weights=weights).apply({}, batch)
                 for names, weights in ((('kd', 'ce'), (4.0, 1.0)), (('kd', 'kd'), (1.0, 3.0))))
  assert twice.keys() == {'kd/ce', 'kd/kl'}
  for term, value in twice.items():
    np.testing.assert_allclose(value, once[term], rtol=1e-6)


def test_a_sum_needs_what_its_parts_need():
  def needs(*names):
    method = lessons.make(SUM, context(), methods=names, weights=(1.0,) * len(names))
    return method.taught_by, method.needs_train_labels

  assert needs('ce', 'ce') == ('labels', False)
  assert needs('ce', 'kd') == ('teacher', False)
  assert needs('crd', 'ce') == ('teacher', True)
  assert needs('crd', 'dih') == ('cohort', True)


@pytest.mark.slow
@pytest.mark.parametrize('name, scale', [('tofd', 1), ('ft', 200)])
def test_a_sum_prepares_what_its_part_prepares(name, scale):
  """And then adds its loss, or the weighted term of a feature method."""
  options = {**SUM, 'methods': ('kd', name), 'weights': (2.0, 3.0)}
  batch = lessons.lesson()
  method, variables = float64.started(options, batch, context())
  alone = lessons.make(ENTRIES[name])
  inner = {collection: tree['parts_1'] for collection, tree in variables.items()}
  assert method.prepares and not lessons.make(SUM, context()).prepares
  prepared, _ = float64.applied(method, variables, batch, 'prepare')
  assert prepared == float64.applied(alone, inner, batch, 'prepare')[0]
  logits = [np.asarray(model.logits, float) for model in (batch.student, batch.teacher)]
  added, _ = float64.applied(alone, inner, batch, 'term' if name == 'ft' else '__call__')
  np.testing.assert_allclose(
      float64.applied(method, variables, batch)[0],
      2 * kd(*logits, 0.1, 5.0).mean() + 3 * scale * np.asarray(added, float), rtol=1e-5)


@pytest.mark.parametrize('changes, message', [
    ({'methods': ('kd',), 'weights': (1.0,)},
     'methods: has 1 names and weights 1 numbers; name two methods or more, and give a weight for '
     'each'),
    ({'weights': (1.0, 2.0)},
     'methods: has 3 names and weights 2 numbers; name two methods or more, and give a weight for '
     'each'),
    ({'methods': ('ce', 'kd', 'takd')},
     "methods: 'takd' has assistants or parts of its own and cannot be summed; choose another"),
    ({'methods': ('ce', 'kd', 'sum')},
     "methods: 'sum' has assistants or parts of its own and cannot be summed; choose another"),
    ({'methods': ('crd', 'crd'), 'weights': (1.0, 1.0)},
     'methods: all of them compare features, and none learns from the labels; add ce, kd or dih')])
def test_parts_that_do_not_fit_together_are_refused(changes, message):
  with pytest.raises(errors.ConfigError) as caught:
    lessons.make(SUM, context(), **changes)
  assert str(caught.value) == f'config.methods.mine.{message}'
