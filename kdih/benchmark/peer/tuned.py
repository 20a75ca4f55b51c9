"""The training step of DIH in PyTorch, tuned for speed."""
import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdih import errors
from kdih.benchmark.peer.forms import Form, crop, dih_loss

_WARM_UP = 3  # The number of steps before a CUDA graph is captured.


class Tuned(Form):
  """A step that is tuned for speed.

  It uses the channels-last layout, no gradients through the cohort, `torch.compile` for the cohort
  with frozen weights (which folds batch norms into convolutions) and for the student, the fused
  optimizer, crop, flip and normalisation on the device, and on a GPU one CUDA graph for the whole
  step. `notes` lists the techniques in use, and those that failed with the reason.

  Args:
    arguments: the arguments of `Form`.
    precision: 'bfloat16' to compute with autocast, else 'float32'.
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
    """Compiles crop, cohort and loss, or adds the reason of a failure to `notes`."""
    eager = self._crop, self._cohort, self._loss
    self._crop = torch.compile(crop)
    self._cohort = torch.compile(_Cohort(self.teacher, self.heads).eval(),
                                 options={'freezing': True})
    self._loss = torch.compile(self._student_loss)
    index = torch.arange(self._pair.batch_size, device=self.device)
    try:
      self._update(index)
      self.notes.append('torch.compile')
    except Exception as error:  # For instance a missing compiler.
      self._crop, self._cohort, self._loss = eager
      self.notes.append(f'eager, because torch.compile failed: {errors.first_line(error)}')

  def capture(self) -> None:
    """Captures the step as a CUDA graph on a GPU, or adds the reason of a failure to `notes`."""
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
    except Exception as error:  # PyTorch raises many kinds of errors if it cannot capture a step.
      self.notes.append(f'no CUDA graph: {errors.first_line(error)}')

  @property
  def note(self) -> str:
    """Returns all notes as one line."""
    return '; '.join(self.notes)

  def _all_members(self, images):
    return _Cohort(self.teacher, self.heads)(images)

  def _student_loss(self, images, members, labels):
    logits, _ = self.student(images)
    return dih_loss(logits.float(), members, labels)

  def _numbers(self) -> contextlib.AbstractContextManager:
    return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

  def members(self, images):
    with torch.no_grad(), self._numbers():
      return [logits.float() for logits in self._cohort(images)]

  def learn(self, images, labels):
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
    if self._graph is None:
      self._update(index.to(self.device))
    else:
      self._index.copy_(index, non_blocking=True)
      self._graph.replay()


class _Cohort(nn.Module):
  """Computes the logits of the heads and of the teacher's classifier from images."""

  def __init__(self, teacher: nn.Module, heads: nn.ModuleDict):
    super().__init__()
    self.teacher, self.heads = teacher, heads

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    """Returns the logits in the order of `Form.members`."""
    logits, features = self.teacher(images)
    return [*(head(features[tap]) for tap, head in self.heads.items()), logits]
