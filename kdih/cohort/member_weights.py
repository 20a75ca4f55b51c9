"""Weights of the cohort's members, from their outputs for the validation images."""
import numpy as np
from scipy import optimize, special

RULES = ('accuracy', 'learnt')  # The ways to weight the members; see `weigh`.


def weigh(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
  """Computes weights of the members from their logits for the validation images.

  'accuracy' is proportional to each member's top-1 accuracy. 'learnt' is a softmax of scores that
  L-BFGS fits to the cross-entropy of the weighted mean of the members' soft labels (temperature 1).

  Args:
    logits: [images, num_classes] of every member, in cohort order.
    labels: int [images].

  Returns:
    For each of `RULES`, float32 [members] with mean 1.
  """
  stacked = np.stack(list(logits.values()))
  accuracy = (stacked.argmax(-1) == labels).mean(-1)
  log_right = np.take_along_axis(
      special.log_softmax(stacked, axis=-1), labels[None, :, None], -1)[..., 0].astype(np.float64)

  def loss_and_gradient(scores):
    joint = log_right + special.log_softmax(scores)[:, None]
    mixture = special.logsumexp(joint, axis=0)
    posterior = np.exp(joint - mixture)
    return -mixture.mean(), special.softmax(scores) - posterior.mean(axis=1)

  fitted = optimize.minimize(loss_and_gradient, np.zeros(len(stacked)), method='L-BFGS-B', jac=True)
  return {rule: np.asarray(weights / max(weights.mean(), 1e-12), np.float32)
          for rule, weights in zip(RULES, (accuracy, special.softmax(fitted.x)), strict=True)}
