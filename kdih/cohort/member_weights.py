"""How much each member of the cohort counts: weights from the validation split."""
import jax
import jax.numpy as jnp
import numpy as np
import optax

RULES = ('accuracy', 'learnt')  # By which members are weighted; see `weigh`.


def weigh(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
  """Weights of the members by what they say of the validation images.

  'accuracy' is in proportion to each member's top-1. 'learnt' is a softmax, fitted with L-BFGS to
  the cross-entropy of the weighted mean of the members' soft labels (temperature 1).

  Args:
    logits: [images, num_classes] of every member, in cohort order.
    labels: int [images].

  Returns:
    For each of `RULES`, float32 [members], of mean 1.
  """
  stacked = np.stack(list(logits.values()))
  accuracy = (stacked.argmax(-1) == labels).mean(-1)
  right = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(stacked)), labels[None, :, None], -1)[..., 0]

  def mixture_loss(scores):
    return -jax.nn.logsumexp(right + jax.nn.log_softmax(scores)[:, None], axis=0).mean()

  learnt = jax.nn.softmax(_minimise(mixture_loss, np.zeros(len(stacked), np.float32)))
  return {rule: np.asarray(weights / max(weights.mean(), 1e-12), np.float32)
          for rule, weights in zip(RULES, (accuracy, learnt), strict=True)}


def _minimise(loss, start: np.ndarray, steps: int = 50) -> jax.Array:
  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  @jax.jit
  def update(point, state):
    value, gradient = value_and_grad(point, state=state)
    change, state = solver.update(
        gradient, state, point, value=value, grad=gradient, value_fn=loss)
    return optax.apply_updates(point, change), state

  point = jnp.asarray(start)
  state = solver.init(point)
  for _ in range(steps):
    point, state = update(point, state)
  return point
