"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import losses, method, options
from kdih.distillation.signal import LOGITS


class Method(method.Method):
  """Distils the probability of the label and the distribution over the other classes separately.

      L = cross_entropy CE(z, y) + w T^2 (alpha TCKD + beta NCKD),
      w = min(epoch / warmup_epochs, 1)

  TCKD = KL(teacher || student) of the two probabilities (p_y, 1 - p_y), and NCKD = KL(teacher ||
  student) of the softmax over the classes other than y, both at temperature T. The authors' code
  counts whole epochs from 1; here the epoch is a fraction that grows with every step from 0.

  Source: Zhao et al., CVPR 2022, arXiv 2203.08679, section 3; the warm-up is that of the authors'
  code, mdistiller. Standardised logits: Sun et al., CVPR 2024, arXiv 2403.01427,
  whose weights are 9 times as large, at T = 2.

  Attributes:
    alpha: weight of TCKD, at least 0.
    beta: weight of NCKD, at least 0; alpha or beta is above 0.
    temperature: T.
    cross_entropy: weight of the labels, at least 0.
    warmup_epochs: epochs in which the teacher's weight rises from 0; 0 for no warm-up.
    standardise: standardise the logits of both, see `losses.standardise`.
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
    if not self.alpha + self.beta:
      raise ValueError('alpha: and beta are both 0, and the teacher has no weight; use the method '
                       'ce')

  def __call__(self, lesson):
    label_loss = losses.cross_entropy(lesson.student.logits, lesson.labels)
    warmth = jnp.minimum(lesson.epoch / self.warmup_epochs, 1) if self.warmup_epochs else 1
    transform = losses.standardise if self.standardise else losses.identity
    student, teacher = (_decoupled(transform(logits), lesson.labels, self.temperature)
                        for logits in (lesson.student.logits, lesson.teacher.logits))
    tckd, nckd = (self.temperature**2 * losses.kl_divergence(log_teacher, log_student)
                  for log_teacher, log_student in zip(teacher, student, strict=True))
    return {'ce': self.cross_entropy * label_loss,
            'tckd': warmth * self.alpha * tckd, 'nckd': warmth * self.beta * nckd}


def _decoupled(logits: jax.Array, labels: jax.Array, temperature: float):
  """Returns log (p_y, 1 - p_y), [batch, 2], and the log of the softmax over the other classes.

  Both are at temperature T. The second is [batch, classes] with -inf for the label. If the logits
  of all other classes are -inf, these classes are equally likely, which is the limit of equal
  logits; if there is no other class, all of the second is -inf.
  """
  logits = logits / temperature
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  label = jnp.where(is_label, logits, 0).sum(-1)
  impossible = jnp.all(is_label | (logits == -jnp.inf), axis=-1)
  others = jnp.where(impossible[:, None], 0, logits)
  rest = jnp.where(impossible, -jnp.inf, jax.nn.logsumexp(others, axis=-1, where=~is_label))
  return (jax.nn.log_softmax(jnp.stack([label, rest], axis=-1)),
          jax.nn.log_softmax(others, axis=-1, where=~is_label))
