"""DML: deep mutual learning (Zhang et al., CVPR 2018, arXiv 1706.00384)."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.distillation import losses, method, options
from kdih.models import taps


class Method(method.Method):
  """Trains the student and its peers by the labels and by each other's logits, in every batch.

      L = sum_i [(1 - alpha) CE(z_i, y)
                 + alpha T^2 / (m - 1) sum_{j != i} KL(p_T(z_j) || p_T(z_i))]

  over the m networks i, the student and its peers, where no gradient flows through z_j. All
  networks are updated in the same step; in the paper they take turns.

  Source: Zhang et al., CVPR 2018, arXiv 1706.00384, section 3.

  Attributes:
    peers: names of the peers' models; 'student' is a model like the student.
    alpha: weight of the peers, in [0, 1]. The paper's two terms have equal weights, as with 0.5.
    temperature: T; the paper has 1.
  """

  taught_by = 'labels'

  peers: options.Names
  alpha: options.Alpha
  temperature: options.Temperature

  @nn.nowrap
  def check(self):
    for name in self.peers:
      self.context.model(name)

  @nn.compact
  def __call__(self, lesson):
    logits_of_all = [lesson.student.logits]
    for number, name in enumerate(self.peers, 1):
      peer = self.context.model(name).clone(name=f'peer{number}', parent=self)
      logits = taps.logits_of(peer(lesson.images, train=True))
      logits_of_all.append(jnp.asarray(logits, jnp.float32))
    ce = sum(losses.cross_entropy(z, lesson.labels) for z in logits_of_all)
    kl = sum(losses.tempered_kl(z, jax.lax.stop_gradient(other), self.temperature)
             for i, z in enumerate(logits_of_all)
             for other in logits_of_all[:i] + logits_of_all[i + 1:]) / (len(logits_of_all) - 1)
    return {'ce': (1 - self.alpha) * ce, 'kl': self.alpha * kl}
