"""The mean of the members' soft labels, against numbers worked out by hand and numpy."""
import jax.numpy as jnp
import numpy as np

from kdih.cohort import soft_label_mean
from tests.helpers import lessons


def test_mean_logits_is_the_log_of_the_mean_softmax():
  rng = np.random.default_rng(4)
  members = {name: rng.normal(scale=3, size=(2, 4)) for name in 'abc'}
  soft = [np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in members.values()]
  found = soft_label_mean.mean_logits(
      {name: jnp.asarray(z, jnp.float32) for name, z in members.items()})
  np.testing.assert_allclose(found, np.log(np.mean(soft, axis=0)), rtol=1e-4)


def test_the_mean_soft_label_worked_by_hand():
  """Of (1/4, 3/4) thrice and (3/4, 1/4) once; its spread is H(3/8) less H(1/4), in nats."""
  members = lessons.single([[[0.0, np.log(9.0)], [np.log(9.0), 0.0]]])  # Of one image.
  found = soft_label_mean.mean_soft_label(members, (0.6, 0.2), 2.0)
  np.testing.assert_allclose(found.mean, [[3 / 8, 5 / 8]], rtol=1e-6)
  np.testing.assert_allclose(found.spread, [0.6615632 - 0.5623351], rtol=1e-5)
