"""DIH's training step as fast as PyTorch can make it."""
import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdih import errors
from kdih.benchmark.peer.forms import Form, crop, dih_loss

_WARM_UP = 3  # Steps before a CUDA graph is captured.


class Tuned(Form):
  """The same step as fast as PyTorch can.

  Channels last; the cohort without gradients, compiled with its weights frozen (which folds batch
  norms into convolutions); the student compiled; the fused optimizer; images, crop, flip and
  normalisation on the device; on a GPU the whole step is a CUDA graph. `notes` says what of this
  did not work.

  Args:
    arguments: of `Form`.
    precision: 'bfloat16' for autocast.
  """

  channels_last = True

  def __init__(self, *arguments: Any, precision: str):
    super().__init__(*arguments)
    self.notes = ['channels_last, no_grad, heads once, fused SGD, data and crop on the device',
                  f'{precision}{" by autocast" if precision == "bfloat16" else ""}']
    self._autocast = precision == 'bfloat16'
    self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
    self._crop: Callable = crop
    self._cohort: Callable = self._all_members
    self._loss: Callable = self._student_loss
    self._graph: Any = None

  def _placed(self, module):
    return module.to(self.device, memory_format=torch.channels_last)

  def _optimizer_options(self):
    return {'fused': True}

  def compile(self) -> None:
    """Compiles what is slow, or notes why not."""
    eager = self._crop, self._cohort, self._loss
    self._crop = torch.compile(crop)
    self._cohort = torch.compile(_Cohort(self.teacher, self.heads).eval(),
                                 options={'freezing': True})
    self._loss = torch.compile(self._student_loss)
    index = torch.arange(self._pair.batch_size, device=self.device)
    try:
      self._update(index)
      self.notes.append('torch.compile')
    except Exception as error:  # Of a compiler that is missing, or the like.
      self._crop, self._cohort, self._loss = eager
      self.notes.append(f'eager, for torch.compile failed: {errors.first_line(error)}')

  def capture(self) -> None:
    """On a GPU, makes a step one CUDA graph, or notes why not."""
    if self.device.type != 'cuda':
      return
    self._index = torch.arange(self._pair.batch_size, device=self.device)
    try:
      stream = torch.cuda.Stream()
      stream.wait_stream(torch.cuda.current_stream())
      with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
          self._update(self._index)
      torch.cuda.current_stream().wait_stream(stream)
      graph = torch.cuda.CUDAGraph()
      with torch.cuda.graph(graph):
        self._update(self._index)
      self._graph = graph
      self.notes.append('CUDA graph')
    except Exception as error:  # Whatever cannot be captured.
      self.notes.append(f'no CUDA graph: {errors.first_line(error)}')

  @property
  def note(self) -> str:
    """What it is made of."""
    return '; '.join(self.notes)

  def _all_members(self, images):
    return _Cohort(self.teacher, self.heads)(images)

  def _student_loss(self, images, members, labels):
    logits, _ = self.student(images)
    return dih_loss(logits.float(), members, labels)

  def _numbers(self) -> contextlib.AbstractContextManager:
    return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

  def members(self, images):
    """See `Form`."""
    with torch.no_grad(), self._numbers():
      return [logits.float() for logits in self._cohort(images)]

  def learn(self, images, labels):
    """See `Form`."""
    self.optimizer.zero_grad(set_to_none=True)
    members = self.members(images)
    with self._numbers():
      loss = self._loss(images, members, labels)
    loss.backward()
    self.optimizer.step()
    return loss

  def _update(self, index):
    with torch.no_grad():
      images = self._crop(self.images, index, *self.draw(len(index), self.device))
    self.learn(images, self.labels[index])

  def step(self, index):
    """See `Form`."""
    if self._graph is None:
      self._update(index.to(self.device))
    else:
      self._index.copy_(index, non_blocking=True)
      self._graph.replay()


class _Cohort(nn.Module):
  """Images to the logits of the heads and of the teacher's classifier."""

  def __init__(self, teacher: nn.Module, heads: nn.ModuleDict):
    super().__init__()
    self.teacher, self.heads = teacher, heads

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    """See `Form.members`."""
    logits, features = self.teacher(images)
    return [*(head(features[tap]) for tap, head in self.heads.items()), logits]
