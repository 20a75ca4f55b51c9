"""DIH's training step in PyTorch, as the paper's code has it, and what the tuned one shares."""
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kdih.benchmark import programs
from kdih.benchmark.peer import networks
from kdih.cohort.head_modules import param_name

_SIDE, _PADDING = programs.SPEC.image_shape[0], programs.AUGMENTATION['padding']


def crop(
    padded: torch.Tensor, index: torch.Tensor, top: torch.Tensor, left: torch.Tensor,
    flip: torch.Tensor,
) -> torch.Tensor:
  """Images of a batch, cropped, perhaps mirrored, and normalised.

  Args:
    padded: uint8 [images, height, width, channels], with a border of zeros.
    index: of the images [batch].
    top: first row of each crop.
    left: first column.
    flip: whether it is mirrored.

  Returns:
    float32 [batch, channels, height, width], in the memory's order of `padded`.
  """
  span = torch.arange(_SIDE, device=index.device)
  rows, columns = top[:, None] + span, left[:, None] + span
  columns = torch.where(flip[:, None], columns.flip(1), columns)
  images = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
  mean, std = (torch.tensor(programs.AUGMENTATION[name], device=index.device)
               for name in ('mean', 'std'))
  return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def dih_loss(
    student: torch.Tensor, members: list[torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
  """The sum over the members of (1 - alpha) CE + alpha T^2 KL, a mean over the batch."""
  alpha, temperature = programs.ALPHA, programs.TEMPERATURE
  loss = torch.zeros((), device=student.device)
  for member in members:
    kl = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.softmax(member / temperature, 1), reduction='batchmean')
    loss = (loss + alpha * temperature**2 * kl
            + (1 - alpha) * functional.cross_entropy(student, labels))
  return loss


class Form:
  """A student, its cohort and its optimizer, with the same numbers as those of a pair.

  Args:
    pair: of kdih.
    names: of teacher and student, for messages.
    device: that they live on.
  """

  channels_last = False

  def __init__(self, pair: programs.ModelPair, names: tuple[str, str], device: torch.device):
    self._pair, self.device = pair, device
    built = pair.built
    self.teacher = self._placed(networks.load(
        networks.like(built.teacher, names[0]), pair.frozen['teacher'])).eval()
    self.student = self._placed(networks.load(
        networks.like(built.student, names[1]), pair.student)).train()
    parameters = {tap: pair.frozen['heads']['params'][param_name(tap)] for tap in built.taps}
    self.heads = self._placed(nn.ModuleDict({
        tap: networks.make_head(dense['kernel'], dense['bias'], built.taps[tap],
                                self.channels_last)
        for tap, dense in parameters.items()})).eval()
    border = ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0))
    pixels, _ = pair.examples.read(np.arange(len(pair.examples)))
    self.images = torch.from_numpy(np.pad(pixels, border))
    self.labels = torch.from_numpy(pair.examples.labels().astype(np.int64))
    self.optimizer = torch.optim.SGD(
        self.student.parameters(), programs.LEARNING_RATE, programs.MOMENTUM, nesterov=True,
        weight_decay=programs.WEIGHT_DECAY, **self._optimizer_options())

  def _placed(self, module: nn.Module) -> nn.Module:
    return module.to(self.device)

  def _optimizer_options(self) -> dict[str, Any]:
    return {}

  def members(self, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits of the heads, in tap order, and of the teacher's classifier."""
    raise NotImplementedError

  def learn(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Makes one update and returns the loss."""
    raise NotImplementedError

  def draw(self, count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random rows, columns and whether to mirror, for so many images."""
    top, left = torch.randint(0, 2 * _PADDING + 1, (2, count), device=device)
    return top, left, torch.rand(count, device=device) < 0.5

  def epoch(self):
    """Indices of batch after batch, in a random order, without end."""
    size = self._pair.batch_size
    while True:
      yield from torch.randperm(len(self.labels)).split(size)[:len(self.labels) // size]

  def seconds(self, calls: int) -> float:
    """Of so many steps with their input, after one that does not count."""
    batches = self.epoch()
    self.step(next(batches))
    self.wait()
    begun = time.perf_counter()
    for _ in range(calls):
      self.step(next(batches))
    self.wait()
    return time.perf_counter() - begun

  def step(self, index: torch.Tensor) -> None:
    """Reads a batch and learns from it."""
    raise NotImplementedError

  def wait(self) -> None:
    """Returns once the device has done its work."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize()


class Paper(Form):
  """The step of the DIH authors' `train_dih.py`.

  Eager and in float32. The teacher's forward pass builds a graph and the loss's gradient flows
  back through it; every head is evaluated twice. The batch is cropped, mirrored and normalised on
  the host (at once, where their data loader works image by image) and copied to the device. After
  each step the loss is read, and the right answers are counted.
  """

  note = ('eager float32; gradients flow through the teacher; heads evaluated twice; crop, flip '
          'and normalisation on the host, one copy to the device; loss read every step')

  def __init__(self, *arguments: Any):
    super().__init__(*arguments)
    self.total, self.right = 0.0, torch.zeros((), dtype=torch.int64, device=self.device)

  def members(self, images):
    """See `Form`."""
    logits, features = self.teacher(images)
    unused = {tap: head(features[tap]) for tap, head in self.heads.items()}
    del unused
    return [*(head(features[tap]) for tap, head in self.heads.items()), logits]

  def learn(self, images, labels):
    """See `Form`."""
    self.optimizer.zero_grad()
    logits, _ = self.student(images)
    loss = dih_loss(logits, self.members(images), labels)
    loss.backward()
    self.optimizer.step()
    self.total += loss.item() * len(labels)
    self.right += (logits.argmax(1) == labels).sum()
    return loss

  def step(self, index):
    """See `Form`."""
    images = crop(self.images, index, *self.draw(len(index), index.device)).contiguous()
    self.learn(images.to(self.device), self.labels[index].to(self.device))
