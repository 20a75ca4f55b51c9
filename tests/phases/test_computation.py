"""Digests of what is computed: they show code that changed, and nothing else."""
import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.data.spec import DataSpec
from kdih.distillation import losses
from kdih.distillation.method import Context, Method
from kdih.phases import computation, networks
from tests.helpers.runs import ROOT, read_config

# The second prepares first, the others couple, draw numbers, keep a memory, have parts, assistants.
METHODS = ('dih', 'fitnets', 'crd', 'dml', 'dih_at', 'takd')
IN_A_PROCESS = """
import json
from tests.phases.test_computation import built
from kdih.phases import computation
print(json.dumps(computation.identify(built())))
"""


def built(*overrides, methods=METHODS):
  config = read_config('unused', 'unused', f'--config.student.methods={",".join(methods)}',
                       *(f'--config.{override}' for override in overrides))
  return networks.build(config, DataSpec('digits', (8, 8, 1), 10))


@pytest.fixture(scope='module')
def tiny():
  return built()


@pytest.fixture(scope='module')
def known(tiny):
  return computation.identify(tiny)


def same(one, other):
  return not computation.differences(json.loads(json.dumps(one)), other)


def net(activation=nn.relu, factor=2.0, table=(1, 2, 3), in_training=1.0,
        first=nn.initializers.zeros):
  """A model of one name and one set of parameters, whatever it computes."""
  constants = np.resize(np.asarray(table, np.float32), (1, 2000))  # Too many for a text.

  class Net(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
      x = activation(nn.Dense(2000)(images.reshape(len(images), -1))) + constants
      self.sow('intermediates', 'stage1', x)
      return factor * (in_training if train else 1.0) * nn.Dense(
          self.num_classes, bias_init=first)(x)

  return Net()


@jax.custom_vjp
def passed_on(x):
  """Its program holds functions, whose names hold addresses."""
  return x


passed_on.defvjp(lambda x: (x, None), lambda _, slope: (slope,))


@pytest.mark.parametrize('changed', [
    {'activation': nn.gelu}, {'factor': 2.5}, {'table': (1, 2, 4)}, {'in_training': 3.0},
    {'first': nn.initializers.ones},
    {'activation': lambda x: nn.relu(jax.lax.stop_gradient(x))}])
def test_another_program_behind_the_same_parameters_shows(tiny, known, changed):
  one, again, other = (
      computation.identify(dataclasses.replace(tiny, teacher=model, student=model, methods={}))
      for model in (net(), net(), net(**changed)))
  assert same(one, again)
  assert computation.differences(one, other) == [
      "the teacher's forward pass or initialisation has changed",
      "the student's forward pass or initialisation has changed"]
  assert computation.differences(known, one) == computation.differences(one, other)


def test_addresses_of_functions_do_not_show(tiny):
  def identified():
    model = net(activation=lambda x: passed_on(nn.relu(x)))
    return computation.identify(dataclasses.replace(tiny, student=model, methods={}))
  assert same(identified(), identified())


def own_method(weight=1.0, prepared=1.0, by_epoch=1.0, term='gap'):
  class Own(Method):
    taught_by, prepares = 'teacher', True

    def prepare(self, lesson):
      return {'ce': prepared * losses.cross_entropy(lesson.student.logits, lesson.labels)}

    def __call__(self, lesson):
      gap = lesson.student.logits - lesson.gather(lesson.teacher.logits)
      return {term: weight * (1 + by_epoch * lesson.epoch) * jnp.square(gap).mean(-1)}

  return Own(Context())


@pytest.mark.parametrize('changed', [{'weight': 2.0}, {'prepared': 2.0}, {'by_epoch': 2.0}])
def test_another_loss_shows_as_that_of_its_method(tiny, changed):
  one, again, other = (
      computation.identify(dataclasses.replace(tiny, methods={'own': method, 'kd': own_method()}))
      for method in (own_method(), own_method(), own_method(**changed)))
  assert same(one, again)
  assert computation.differences(one, other) == ['the loss of the method own has changed']


def test_how_the_terms_of_a_loss_are_called_does_not_show(tiny):
  one, other = (
      computation.identify(dataclasses.replace(tiny, methods={'own': own_method(term=name)}))
      for name in ('gap', 'distance'))
  assert same(one, other)


def test_options_and_heads_show(known):
  other = computation.identify(built(
      'methods.dih.alpha=0.2', 'heads.kind=gap', methods=('dih', 'fitnets', 'kd')))
  assert computation.differences(known, other) == [
      "the heads' forward pass has changed", 'the loss of the method dih has changed']


def test_a_changed_assistant_shows_as_its_method(tiny, known):
  assistants = {**tiny.assistants, 'tests.helpers.tiny_nets:TinyNet': net()}
  other = computation.identify(dataclasses.replace(tiny, assistants=assistants))
  assert computation.differences(known, other) == ['the loss of the method takd has changed']


@pytest.mark.parametrize('setting', [
    'fold_batch_norm=false', 'teacher_dtype=bfloat16', 'remat=true', 'accumulate=2',
    'mean_soft_label=false', 'cache=all_views'])
def test_how_it_is_computed_does_not_show(tiny, setting):
  methods = ('dih',)
  few = dataclasses.replace(tiny, methods={'dih': tiny.methods['dih']})
  other = built(f'compute.{setting}', methods=methods)
  assert computation.identify(other) == computation.identify(few)


def test_parts_of_a_sum_are_taken_without_switches_too(tiny):
  one, other = (built(f'compute.mean_soft_label={on}', methods=('dih_at',)) for on in (True, False))
  assert computation.identify(one) == computation.identify(other)


@pytest.mark.slow
def test_another_process_finds_the_same_whatever_was_traced_before(known):
  jax.clear_caches()
  assert computation.identify(built()) == known
  done = subprocess.run(
      [sys.executable, '-c', IN_A_PROCESS], cwd=ROOT, check=True, capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '7'})
  assert json.loads(done.stdout) == known


def test_what_one_side_lacks_is_not_compared_and_nothing_is_between_versions_of_jax(known):
  other = {**known, 'teacher': 'x', 'methods': {'dih': 'y', 'kd': 'z'}}
  assert computation.differences(known, other) == [
      "the teacher's forward pass or initialisation has changed",
      'the loss of the method dih has changed']
  assert not computation.differences({**known, 'jax': '0.0'}, other)
  assert not computation.differences({'jax': known['jax']}, other)
