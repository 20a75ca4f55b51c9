"""What crosses the devices inside a step, and the programs that a process holds."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize('share, forgotten', [(4, True), (2, False)])
def test_programs_are_forgotten_before_the_memory_maps_of_a_process_are_at_an_end(
    tmp_path, monkeypatch, share, forgotten):
  """At a third of the most, and never where the limit is not known."""
  maps = tmp_path / 'maps'
  maps.write_text('a line\n' * (12 * share))
  monkeypatch.setattr(devices, '_MAPS', maps)
  monkeypatch.setattr(devices, '_MOST_MAPS', tmp_path / 'most')
  program = jax.jit(lambda x: x + 1)
  program(jnp.zeros(3))
  devices.forget_programs()
  assert program._cache_size() == 1
  (tmp_path / 'most').write_text('100\n')
  devices.forget_programs()
  assert program._cache_size() == (0 if forgotten else 1)


@pytest.mark.skipif(not pathlib.Path('/proc/self/maps').exists(), reason='is of Linux')
def test_programs_that_are_forgotten_leave_their_memory_maps(tmp_path, monkeypatch):
  (tmp_path / 'most').write_text('3')  # Any process has more.
  monkeypatch.setattr(devices, '_MOST_MAPS', tmp_path / 'most')

  def count():
    return len(pathlib.Path('/proc/self/maps').read_text().splitlines())

  before = count()
  for size in range(2, 42):
    jax.jit(lambda x: jnp.cumsum(jnp.sin(x @ x.T), 0))(jnp.ones((size, 3)))
  full = count()
  assert full > before + 40
  devices.forget_programs()
  assert count() < full - 40
