"""Deep mutual learning (Zhang et al., 2018, arXiv 1706.00384, section 3)."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import losses, method, options
from kdih.models import taps


class Method(method.Method):
  """The student and its peers learn from the labels and from each other, in every batch.

  Of m networks, each minimises
  (1 - alpha) CE(z_i, y) + alpha T^2 / (m - 1) sum_{j != i} KL(p_T(z_j) || p_T(z_i)), where what
  the others say is a constant. All take their step at once; the paper lets them take turns.

  Attributes:
    peers: names of models, 'student' for one like the student.
    alpha: weight of the peers, in [0, 1]; 0.5 weights them as the paper does.
    temperature: T; the paper has 1.
  """

  taught_by = 'labels'

  peers: options.Names
  alpha: options.Alpha
  temperature: options.Temperature

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    for name in self.peers:
      self.context.model(name)

  @nn.compact
  def __call__(self, lesson):
    """Returns 'ce' and 'kl' of all networks; see `kdih.distillation.method.Method`."""
    everyone = [lesson.student.logits]
    for number, name in enumerate(self.peers, 1):
      peer = self.context.model(name).clone(name=f'peer{number}', parent=self)
      logits = taps.logits_of(peer(lesson.images, train=True))
      everyone.append(jnp.asarray(logits, jnp.float32))
    ce = sum(losses.cross_entropy(z, lesson.labels) for z in everyone)
    kl = sum(losses.tempered_kl(z, jax.lax.stop_gradient(other), self.temperature)
             for i, z in enumerate(everyone)
             for other in everyone[:i] + everyone[i + 1:]) / (len(everyone) - 1)
    return {'ce': (1 - self.alpha) * ce, 'kl': self.alpha * kl}
