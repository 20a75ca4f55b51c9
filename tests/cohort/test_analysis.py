"""The analysis of a cohort against numbers worked out by hand."""
import json
import math

import numpy as np
import pytest

from kdih.cohort.analysis import analyse, calibration


def logits(probabilities) -> np.ndarray:
  """Logits whose soft labels these are, float32."""
  return np.log(np.asarray(probabilities, np.float64)).astype(np.float32) + 3.0


LABELS = np.array([0, 1, 1])
# First choices: a 0 1 0, b 0 0 1, final 0 1 1.
COHORT = {
    'stage2': logits([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]),
    'stage1': logits([[0.6, 0.2, 0.2], [0.5, 0.4, 0.1], [0.1, 0.55, 0.35]]),
    'final': logits([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.3, 0.4, 0.3]]),
}


def entropy(*probabilities) -> float:
  return -sum(p * math.log(p) for p in probabilities)


def test_entropy_is_the_mean_over_images_in_nats():
  found = analyse(COHORT, LABELS)['members']
  assert list(found) == ['stage2', 'stage1', 'final']
  expected = (entropy(0.5, 0.25, 0.25) + entropy(0.1, 0.8, 0.1) + entropy(0.7, 0.2, 0.1)) / 3
  assert found['stage2']['entropy'] == pytest.approx(expected, abs=1e-6)


def test_the_entropy_of_the_certain_is_0_and_of_the_clueless_log_classes():
  found = analyse({'sure': np.array([[2000.0, 0.0, -2000.0]]), 'not': np.zeros((1, 3))},
                  np.array([0]))['members']
  assert found['sure']['entropy'] == 0.0
  assert found['not']['entropy'] == pytest.approx(math.log(3))


def test_agreement_is_the_share_of_the_same_first_choices():
  found = analyse(COHORT, LABELS)['agreement']
  assert found['names'] == ['stage2', 'stage1', 'final']
  np.testing.assert_allclose(found['matrix'], np.array([[3, 1, 2], [1, 3, 2], [2, 2, 3]]) / 3)


def test_leaving_one_out():
  # The third image is class 1. Its sums of all members: 1.1, 1.15, 0.75. Without stage2: 0.4,
  # 0.95; without stage1: 1.0, 0.6; without final: 0.8, 0.75. The second: 0.7, 1.8; without
  # stage2: 0.6, 1.0; without stage1: 0.2, 1.4; without final: 0.6, 1.2. The first is always right.
  assert analyse(COHORT, LABELS)['without'] == {
      'none': 1.0, 'stage2': 1.0, 'stage1': pytest.approx(2 / 3), 'final': pytest.approx(2 / 3)}


def test_a_member_that_is_alone_cannot_be_left_out():
  assert analyse({'final': COHORT['stage2']}, LABELS)['without'] == {
      'none': pytest.approx(2 / 3)}


def test_calibration_by_hand():
  # Confidences 0.5 (right), 0.52 (wrong), 0.9 (right), 1.0 (right), 0.95 (wrong).
  probabilities = np.array([[0.5, 0.3, 0.2], [0.52, 0.48, 0.0], [0.05, 0.9, 0.05],
                            [0.0, 0.0, 1.0], [0.95, 0.05, 0.0]])
  found = calibration(probabilities, np.array([0, 1, 1, 2, 2]))
  bins = found['bins']
  assert len(bins) == 15
  assert [(m, b['count']) for m, b in enumerate(bins) if b['count']] == [(7, 2), (13, 1), (14, 2)]
  assert (bins[7]['low'], bins[7]['high']) == (pytest.approx(7 / 15), pytest.approx(8 / 15))
  assert bins[7]['accuracy'] == 0.5 and bins[7]['confidence'] == pytest.approx(0.51)
  assert bins[14]['accuracy'] == 0.5 and bins[14]['confidence'] == pytest.approx(0.975)
  assert bins[0] == {'low': 0.0, 'high': pytest.approx(1 / 15), 'count': 0, 'confidence': None,
                     'accuracy': None}
  # (2 * |0.5 - 0.51| + |1 - 0.9| + 2 * |0.5 - 0.975|) / 5.
  assert found['ece'] == pytest.approx((0.02 + 0.1 + 0.95) / 5)


@pytest.mark.parametrize('confidence, place', [(0.4, 5), (0.6, 8), (0.6000001, 9), (1.0, 14)])
def test_a_bin_holds_its_upper_edge(confidence, place):
  rest = (1 - confidence) / 2
  counts = [b['count'] for b in calibration(np.array([[confidence, rest, rest]]),
                                            np.array([0]))['bins']]
  assert counts[place] == sum(counts) == 1


def test_calibration_of_the_members_agrees_with_a_loop():
  random = np.random.default_rng(0)
  z, labels = 3 * random.normal(size=(500, 10)), random.integers(10, size=500)
  p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  expected = 0.0
  for m in range(1, 16):
    inside = [i for i in range(500) if (m - 1) / 15 < p[i].max() <= m / 15]
    if inside:
      right = sum(p[i].argmax() == labels[i] for i in inside)
      expected += abs(right - sum(p[i].max() for i in inside)) / 500
  assert expected > 0.1
  found = analyse({'final': z.astype(np.float32)}, labels)['members']['final']
  assert found['ece'] == pytest.approx(expected, abs=1e-5)


def test_json_can_hold_it_all():
  found = analyse(COHORT, LABELS)
  assert set(found) == {'members', 'agreement', 'without'}
  assert json.loads(json.dumps(found, allow_nan=False)) == found
