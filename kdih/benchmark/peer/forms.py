"""The training step of DIH in PyTorch: the base of two implementations, and that of the paper."""
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
  """Crops, mirrors and normalises the images of a batch.

  Args:
    padded: uint8 [images, height, width, channels], with a border of zeros.
    index: [batch], the indices of the images.
    top: [batch], the first row of each crop.
    left: [batch], the first column of each crop.
    flip: [batch], whether each crop is mirrored.

  Returns:
    float32 [batch, channels, height, width], in the memory layout of `padded`.
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
  """Returns the sum over the members of (1 - alpha) CE + alpha T^2 KL, averaged over the batch."""
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
  """An implementation: a student, its cohort and its optimizer, with the variables of kdih.

  Args:
    pair: provides the variables and the images.
    names: the names of teacher and student, for messages.
    device: the device of the models.
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
    """Returns the logits of the heads, in cohort order, and of the teacher's classifier."""
    raise NotImplementedError

  def learn(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Makes one update and returns the loss."""
    raise NotImplementedError

  def draw(self, count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Returns random first rows, first columns and flips for the crops of `count` images."""
    top, left = torch.randint(0, 2 * _PADDING + 1, (2, count), device=device)
    return top, left, torch.rand(count, device=device) < 0.5

  def epoch(self):
    """Yields the indices of batches in a random order, without end."""
    size = self._pair.batch_size
    while True:
      yield from torch.randperm(len(self.labels)).split(size)[:len(self.labels) // size]

  def seconds(self, calls: int) -> float:
    """Returns the seconds of `calls` steps with their input, after one step that is not timed."""
    batches = self.epoch()
    self.step(next(batches))
    self.wait()
    begun = time.perf_counter()
    for _ in range(calls):
      self.step(next(batches))
    self.wait()
    return time.perf_counter() - begun

  def step(self, index: torch.Tensor) -> None:
    """Reads a batch and makes an update with it."""
    raise NotImplementedError

  def wait(self) -> None:
    """Waits until the device has finished its work."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize()


class Paper(Form):
  """The step of `train_dih.py`, by the authors of DIH.

  It runs eagerly in float32. The teacher's forward pass builds a graph, through which the gradient
  of the loss flows back, and every head is evaluated twice. The batch is cropped, mirrored and
  normalised on the host and copied to the device; their data loader processes one image at a time,
  this class the whole batch. After each step the loss is read and correct predictions are counted.
  """

  note = ('eager float32; gradients flow through the teacher; heads evaluated twice; crop, flip '
          'and normalisation on the host, one copy to the device; loss read every step')

  def __init__(self, *arguments: Any):
    super().__init__(*arguments)
    self.total, self.right = 0.0, torch.zeros((), dtype=torch.int64, device=self.device)

  def members(self, images):
    logits, features = self.teacher(images)
    unused = {tap: head(features[tap]) for tap, head in self.heads.items()}
    del unused
    return [*(head(features[tap]) for tap, head in self.heads.items()), logits]

  def learn(self, images, labels):
    self.optimizer.zero_grad()
    logits, _ = self.student(images)
    loss = dih_loss(logits, self.members(images), labels)
    loss.backward()
    self.optimizer.step()
    self.total += loss.item() * len(labels)
    self.right += (logits.argmax(1) == labels).sum()
    return loss

  def step(self, index):
    images = crop(self.images, index, *self.draw(len(index), index.device)).contiguous()
    self.learn(images.to(self.device), self.labels[index].to(self.device))
