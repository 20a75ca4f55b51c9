"""What crosses the devices inside a step."""
import jax
import jax.numpy as jnp
import numpy as np

from kdih.runtime import devices


def test_the_mean_is_that_of_floating_numbers_and_whole_ones_stay():
  n = jax.device_count()
  tree = {'mean': jnp.arange(2.0 * n).reshape(n, 2), 'half': jnp.arange(n, dtype=jnp.bfloat16),
          'count': jnp.full(n, 7), 'seen': jnp.full(n, True)}
  found = jax.pmap(devices.mean, axis_name=devices.AXIS)(tree)
  assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, tree)
  for device in range(n):
    np.testing.assert_allclose(found['mean'][device], [n - 1, n])
    assert (found['half'][device], found['count'][device], found['seen'][device]) == (
        (n - 1) / 2, 7, True)


def test_the_mean_of_nothing_is_nothing():
  assert jax.pmap(lambda _: devices.mean({}), axis_name=devices.AXIS)(
      jnp.zeros(jax.device_count())) == {}
