"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679, section 3)."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import losses, method, options
from kdih.distillation.signal import LOGITS


class Method(method.Method):
  """cross_entropy CE(z, y) + min(epoch / warmup_epochs, 1) T^2 (alpha TCKD + beta NCKD).

  TCKD is the KL divergence of (p_y, 1 - p_y), the label against all the rest, NCKD that of the
  softmax over the classes other than y, both at temperature T, the teacher's from the student's.
  The authors' code counts whole epochs from 1; here the epoch grows with every step, from 0.

  Attributes:
    alpha: weight of TCKD, 0 or more.
    beta: weight of NCKD, 0 or more; one of both is above 0.
    temperature: T.
    cross_entropy: weight of the labels, 0 or more.
    warmup_epochs: until the teacher counts in full; 0 for at once.
    standardise: show both standardised logits, see `losses.standardise`; the usual weights
      are then 9 times as large, and T 2 (Sun et al., 2024, arXiv 2403.01427).
  """

  summary = LOGITS

  alpha: options.Weight
  beta: options.Weight
  temperature: options.Temperature
  cross_entropy: options.Weight
  warmup_epochs: options.Epochs
  standardise: options.Flag

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    if not self.alpha + self.beta:
      raise ValueError('alpha: and beta are both 0, so that the teacher says nothing; use ce')

  def __call__(self, lesson):
    """Returns 'ce', 'tckd' and 'nckd'; see `kdih.distillation.method.Method`."""
    label_loss = losses.cross_entropy(lesson.student.logits, lesson.labels)
    warmth = jnp.minimum(lesson.epoch / self.warmup_epochs, 1) if self.warmup_epochs else 1
    view = losses.standardise if self.standardise else losses.as_they_are
    student, teacher = (_decoupled(view(logits), lesson.labels, self.temperature)
                        for logits in (lesson.student.logits, lesson.teacher.logits))
    tckd, nckd = (self.temperature**2 * losses.kl_divergence(log_teacher, log_student)
                  for log_teacher, log_student in zip(teacher, student, strict=True))
    return {'ce': self.cross_entropy * label_loss,
            'tckd': warmth * self.alpha * tckd, 'nckd': warmth * self.beta * nckd}


def _decoupled(logits: jax.Array, labels: jax.Array, temperature: float):
  """log (p_y, 1 - p_y) at T, [batch, 2], and log of the softmax over the classes other than y.

  In the latter, [batch, classes], the label's is -inf. Where the logits of all the others are, they
  are equally likely, which is the limit of logits that fall together; where there are none, all of
  it is -inf.
  """
  logits = logits / temperature
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  label = jnp.where(is_label, logits, 0).sum(-1)
  nothing = jnp.all(is_label | (logits == -jnp.inf), axis=-1)
  others = jnp.where(nothing[:, None], 0, logits)
  rest = jnp.where(nothing, -jnp.inf, jax.nn.logsumexp(others, axis=-1, where=~is_label))
  return (jax.nn.log_softmax(jnp.stack([label, rest], axis=-1)),
          jax.nn.log_softmax(others, axis=-1, where=~is_label))
