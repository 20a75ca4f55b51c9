"""Losses, per example and unreduced. z are logits [batch, classes], y labels int [batch].

A logit of -inf gives its class the probability 0, and 0 log 0 is 0: such a teacher is the limit of
one whose logit falls without end, and several fall together. A student that gives the probability
0 to what its teacher or the label does not has an infinite loss, and its gradient's limit.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

View = Callable[[jax.Array], jax.Array]

_LOWEST = -1e30  # In a mean and a deviation, as good as a logit of -inf, or of float32's least.


def as_they_are(logits: jax.Array) -> jax.Array:
  """The view of logits that changes nothing."""
  return logits


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """CE(z, y), [batch], in nats."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def expectation(probabilities: jax.Array, numbers: jax.Array) -> jax.Array:
  """Returns sum_c p_c n_c over the last axis, where 0 times an infinite number is 0.

  A probability below the least normal number counts as 0, as processors may round it to that.
  """
  none = probabilities < jnp.finfo(probabilities.dtype).tiny
  # The inner `where` keeps what is infinite out of the gradient.
  return jnp.where(none, 0, probabilities * jnp.where(none, 0, numbers)).sum(-1)


def kl_divergence(log_teacher: jax.Array, log_student: jax.Array) -> jax.Array:
  """Returns KL(p || q) over the last axis, in nats, of log p and log q."""
  return expectation(jnp.exp(log_teacher), log_teacher - log_student)


def soft_cross_entropy(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns H(p_T(teacher), p_T(student)), [batch], in nats; `tempered_kl` says what p_T is."""
  return expectation(jax.nn.softmax(teacher / temperature),
                     -jax.nn.log_softmax(student / temperature))


def tempered_kl(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """T^2 KL(p_T(teacher) || p_T(student)), [batch], with p_T(z) = softmax(z / T).

  Hinton et al., 2015 (arXiv 1503.02531); the factor T^2 keeps its gradient's scale.
  """
  return temperature**2 * kl_divergence(
      jax.nn.log_softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))


def standardise(logits: jax.Array) -> jax.Array:
  """Every row less its mean, over its standard deviation (Sun et al., 2024, arXiv 2403.01427).

  (z - mean(z)) / (1e-7 + std(z)), [batch, classes], with PyTorch's std (over classes - 1). Of
  equal logits, which a fresh classifier may give, and of a single class it is 0, and so is its
  gradient.
  """
  logits = jnp.maximum(logits, _LOWEST)
  highest, lowest = (jax.lax.stop_gradient(bound(logits, axis=-1, keepdims=True))
                     for bound in (jnp.max, jnp.min))
  span = highest - lowest
  apart = ~(span < jnp.finfo(span.dtype).tiny)  # So that what is no number stays none.
  # In [-1, 0] instead, which changes nothing, logits of any size can be squared.
  scaled = (logits - highest) / jnp.where(apart, span, 1)
  centred = scaled - scaled.mean(-1, keepdims=True)
  variance = (centred * centred).sum(-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
  deviation = jnp.sqrt(jnp.where(apart, variance, 1))  # The root has no gradient at 0.
  return jnp.where(apart, centred / (1e-7 / jnp.where(apart, span, 1) + deviation), 0)


def kd_loss(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, alpha: float, temperature: float,
    gain: float = 1.0, view: View = as_they_are,
) -> jax.Array:
  """(1 - alpha) CE(z, y) + alpha gain T^2 KL(p_T(t) || p_T(z)), [batch] (DIH, section 3).

  `gain` is 1 there; `view` is what the KL sees of logits, such as `standardise`.
  """
  return ((1 - alpha) * cross_entropy(student, labels)
          + alpha * gain * tempered_kl(view(student), view(teacher), temperature))


def cohort_loss(
    student: jax.Array,
    members: Mapping[str, jax.Array],
    labels: jax.Array,
    alphas: Sequence[float],
    temperatures: Sequence[float],
    *,
    reduction: str = 'sum',
    cross_entropy_per: str = 'per_branch',
    weights: jax.Array | None = None,
    gain: float = 1.0,
    view: View = as_they_are,
) -> jax.Array:
  """The DIH loss, [batch]: one branch of `kd_loss` for every member of the cohort.

  L = sum_b [(1 - alpha_b) CE(z, y) + alpha_b w_b gain T_b^2 KL(p_T(t_b) || p_T(z))] (DIH,
  section 3; w_b and gain are 1 there).

  Args:
    student: z.
    members: t_b, by name.
    labels: y.
    alphas: alpha_b in the order of `members`; a branch of 0 is left out, with its CE.
    temperatures: T_b, likewise.
    reduction: 'sum' as in the paper, or 'mean' over the branches that are left.
    cross_entropy_per: 'per_branch' as in the formula, or 'once' as in the paper's figure: one
      CE, weighted by the mean of 1 - alpha_b.
    weights: w_b, [members], of mean 1; all 1 unless given.
    gain: how much more every teacher counts.
    view: what the KL sees of logits, such as `standardise`.
  """
  shares = [1.0] * len(members) if weights is None else list(weights)
  branches = [(a, t, w, view(logits)) for a, t, w, logits
              in zip(alphas, temperatures, shares, members.values(), strict=True) if a > 0]
  seen = view(student)
  taught = gain * sum(a * w * tempered_kl(seen, logits, t) for a, t, w, logits in branches)
  return _with_labels(jnp.asarray(taught), cross_entropy(student, labels),
                      [a for a, *_ in branches], reduction, cross_entropy_per)


def _with_labels(
    taught: jax.Array, label_loss: jax.Array, alphas: Sequence[float], reduction: str,
    cross_entropy_per: str,
) -> jax.Array:
  """The DIH loss of the branches' sum of divergences; `alphas` are those above 0."""
  share = 1 / len(alphas) if reduction == 'mean' else 1.0
  label_share = 1 / len(alphas) if cross_entropy_per == 'once' else share
  return share * taught + label_share * sum(1 - a for a in alphas) * label_loss


class SoftLabel(NamedTuple):
  """What a cohort of one temperature says in all, for each image.

  Attributes:
    mean: the weighted mean of the members' soft labels, [batch, classes].
    spread: the weighted mean of their KL divergences from it, in nats, [batch].
  """

  mean: jax.Array
  spread: jax.Array


def member_shares(alphas: Sequence[float], weights: jax.Array | None) -> list[jax.Array | None]:
  """alpha_b w_b of every member; None of one that is left out."""
  each = [1.0] * len(alphas) if weights is None else list(weights)
  return [jnp.asarray(a * w, jnp.float32) if a > 0 else None
          for a, w in zip(alphas, each, strict=True)]


def soft_label_loss(
    student: jax.Array,
    label: SoftLabel,
    labels: jax.Array,
    alphas: Sequence[float],
    temperature: float,
    *,
    reduction: str = 'sum',
    cross_entropy_per: str = 'per_branch',
    weights: jax.Array | None = None,
    gain: float = 1.0,
    view: View = as_they_are,
) -> jax.Array:
  """`cohort_loss` of members that share a temperature, from their mean soft label, [batch].

  sum_b c_b KL(p_b || q) = C [KL(mean || q) + spread], with c_b = alpha_b w_b and C their sum: one
  softmax of the student and one KL for the whole cohort, with the same value and gradient.
  """
  log_student = jax.nn.log_softmax(view(student) / temperature)
  kl = expectation(label.mean, jnp.log(label.mean) - log_student) + label.spread
  total = sum(share for share in member_shares(alphas, weights) if share is not None)
  return _with_labels(gain * total * temperature**2 * kl, cross_entropy(student, labels),
                      [a for a in alphas if a > 0], reduction, cross_entropy_per)
