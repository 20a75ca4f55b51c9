"""Weights of the members, from their logits for the validation images."""
import numpy as np

from kdih.cohort import member_weights


def test_members_weigh_by_their_accuracy():
  labels = np.array([0, 1, 2, 3, 4, 0, 1, 2])
  right = 5 * np.eye(5, dtype=np.float32)[labels]
  found = member_weights.weigh({
      'stage1': np.roll(right, 1, axis=1), 'stage2': np.r_[right[:4], -right[4:]],
      'final': right}, labels)['accuracy']
  np.testing.assert_allclose(found, [0, 1, 2], rtol=1e-6)


def test_learnt_weights_maximise_the_likelihood_of_the_mixture():
  """Against the weights that expectation maximisation finds, in float64."""
  rng = np.random.default_rng(6)
  labels = rng.integers(0, 5, 300)
  signal = np.eye(5)[labels]
  logits = {name: (strength * signal + rng.normal(scale=1.5, size=(300, 5))).astype(np.float32)
            for name, strength in (('stage1', 0.0), ('stage2', 2.0), ('final', 2.5))}
  exponentials = [np.exp(z.astype(np.float64)) for z in logits.values()]
  right = np.stack([(e / e.sum(-1, keepdims=True))[range(300), labels] for e in exponentials])
  share = np.full(3, 1 / 3)
  for _ in range(3000):
    posterior = share[:, None] * right / (share @ right)
    share = posterior.mean(axis=1)
  found = member_weights.weigh(logits, labels)['learnt']
  np.testing.assert_allclose(found, 3 * share, atol=2e-3)
  assert found[0] < found[1] < found[2] and share[1] > 0.1
