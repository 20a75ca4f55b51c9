"""A teacher signal as a row of numbers for each image, and back."""
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.cohort.cache import rows
from kdih.distillation.signal import SoftLabel, TeacherSignal

RNG = np.random.default_rng(2)
IMAGES = 3


def drawn(*shape):
  return jnp.asarray(RNG.normal(size=(IMAGES, *shape)), jnp.float32)


SIGNALS = {
    'logits': TeacherSignal(logits=drawn(5)),
    'soft label': TeacherSignal(soft_label=SoftLabel(drawn(5), drawn())),
    'members': TeacherSignal(members=drawn(4, 5)),
    # Taps from the shallowest to the deepest, in an order that is not alphabetical.
    'features': TeacherSignal(features=OrderedDict(
        stage2=drawn(4, 4, 2), stage10=drawn(7), stage1=drawn(2, 3, 5))),
    'all of it': TeacherSignal(
        logits=drawn(5), features=OrderedDict(b=drawn(2, 2, 3), a=drawn(1, 1, 4)),
        preactivations=OrderedDict(b=drawn(2, 2, 3)), embedding=drawn(6), members=drawn(4, 5),
        soft_label=SoftLabel(drawn(5), drawn()))}
WIDTHS = {'logits': 5, 'soft label': 6, 'members': 20, 'features': 32 + 7 + 30,
          'all of it': 5 + 12 + 4 + 12 + 6 + 20 + 6}


def shapes(signal):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), signal)


@pytest.mark.parametrize('kind', SIGNALS)
def test_a_signal_comes_back_from_its_rows(kind):
  signal = SIGNALS[kind]
  flat = rows.flatten(signal)
  assert flat.shape == (IMAGES, WIDTHS[kind]) and rows.width(shapes(signal)) == WIDTHS[kind]
  found = rows.unflatten(flat, shapes(signal))
  assert jax.tree.structure(found) == jax.tree.structure(signal)
  assert list(found.features) == list(signal.features)
  assert list(found.preactivations) == list(signal.preactivations)
  jax.tree.map(np.testing.assert_array_equal, found, signal)


def test_half_of_the_bits_come_back_as_float32():
  signal = SIGNALS['members']
  found = rows.unflatten(rows.flatten(signal).astype(jnp.float16), shapes(signal))
  assert found.members.dtype == jnp.float32
  np.testing.assert_array_equal(found.members, np.asarray(signal.members, np.float16))


def test_a_soft_label_lies_as_its_mean_and_then_its_spread():
  label = SoftLabel(jnp.array([[0.25, 0.75], [0.5, 0.5]]), jnp.array([7.0, 8.0]))
  np.testing.assert_array_equal(
      rows.flatten(TeacherSignal(soft_label=label)), [[0.25, 0.75, 7], [0.5, 0.5, 8]])


def test_members_lie_one_after_the_other_and_features_from_the_shallowest_to_the_deepest():
  members = jnp.arange(12.0).reshape(1, 3, 4)
  np.testing.assert_array_equal(rows.flatten(TeacherSignal(members=members)), [np.arange(12)])
  features = OrderedDict(stage2=jnp.array([[[[1.0, 2.0]]]]), stage10=jnp.array([[3.0]]),
                         stage1=jnp.array([[[[4.0], [5.0]]]]))
  np.testing.assert_array_equal(rows.flatten(TeacherSignal(features=features)), [[1, 2, 3, 4, 5]])


def test_an_image_has_its_own_row_whatever_else_is_in_the_batch():
  signal = SIGNALS['all of it']
  one = jax.tree.map(lambda leaf: leaf[1:2], signal)
  np.testing.assert_array_equal(rows.flatten(signal)[1:2], rows.flatten(one))


def test_within_a_program_the_order_stays():
  """A jitted function takes the signal apart and makes it anew."""
  signal = SIGNALS['features']
  found = jax.jit(lambda signal: rows.unflatten(rows.flatten(signal), shapes(signal)))(signal)
  assert list(found.features) == ['stage2', 'stage10', 'stage1']
  jax.tree.map(np.testing.assert_array_equal, found, signal)
