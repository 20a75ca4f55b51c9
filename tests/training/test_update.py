"""One update by hand: the mean gradient of the global batch, and other random numbers each step."""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdih.runtime import devices
from kdih.training import state
from kdih.training.task import Task
from tests.helpers.arrays import Arrays, compiled_step, fed

COUNT, LEARNING_RATE = 16, 0.5


def updated(loss, preprocess=lambda images, index, key: images, steps=1):
  """(parameter 'w', metrics of each update) after updates from w = 1 on the same 16 images."""
  def terms(params, collections, frozen, batch, signal, moment):
    del frozen, signal
    return {'own': loss(params['w'], batch, moment)}, (collections, {
        'student': jnp.zeros((len(batch.labels), 10))})

  tx, loader = optax.sgd(LEARNING_RATE), Arrays(COUNT)
  step = compiled_step(
      Task(loss=terms, predict=lambda *_: {}, frozen={}, preprocess=preprocess), tx, loader)
  current = devices.replicate(state.create({'params': {'w': np.ones((), np.float32)}}, tx, 7))
  metrics = []
  batch = {'index': np.arange(COUNT, dtype=np.int32)}
  for feed in fed(iter([batch] * steps), [1] * steps):
    current, found = step(current, {}, loader.resident, feed)
    metrics.append({name: float(values[0]) for name, values in found.items()})
  return float(current.params['w']), metrics


def test_the_gradient_is_the_mean_over_the_global_batch():
  labels = Arrays(COUNT).resident['label']
  w, (metrics,) = updated(lambda w, batch, moment: w**2 * batch.labels)
  np.testing.assert_allclose(metrics['loss'], labels.mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics['own'], labels.mean(), rtol=1e-6)
  np.testing.assert_allclose(w, 1 - LEARNING_RATE * 2 * labels.mean(), rtol=1e-6)


def test_every_step_has_random_numbers_of_its_own():
  def drawn(key, like):
    return jax.random.normal(key, like.shape)

  def loss(w, batch, moment):
    return 0 * w + drawn(moment.key, batch.labels)

  _, by_moment = updated(loss, steps=3)
  assert len({metrics['loss'] for metrics in by_moment}) == 3
  _, by_view = updated(lambda w, batch, moment: 0 * w + batch.images.mean((1, 2, 3)),
                       lambda images, index, key: drawn(key, images), steps=3)
  assert len({metrics['loss'] for metrics in by_view}) == 3
