"""The models of kdih in PyTorch: the same layers with the same names and the same parameters."""
from typing import Any

import flax
import flax.linen
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kdih import errors
from kdih.models import resnet, wide_resnet

Tap = dict[str, torch.Tensor]


def like(model: flax.linen.Module, name: str) -> nn.Module:
  """Returns a model in PyTorch, which returns (logits, {tap: feature}).

  Args:
    model: the module of kdih.
    name: its name, for the message.

  Raises:
    ConfigError: the model is not available in PyTorch.
  """
  if isinstance(model, wide_resnet.WideResNet) and not model.use_bias:
    return WideResNet(model)
  plain = isinstance(model, resnet.ResNet) and not model.imagenet_stem
  if plain and model.block is resnet.BasicBlock:
    return ResNet(model)
  raise errors.ConfigError(
      f'--peer=torch: the model {name} is not available in PyTorch; choose CIFAR ResNets, '
      'resnet18, resnet34, or wide ResNets such as wrn_16_2')


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
  """The block `kdih.models.resnet.BasicBlock` with its last ReLU."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1, self.norm1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.norm2 = _conv(width, width), nn.BatchNorm2d(width)
    self.projection = None
    if inputs != width or stride != 1:
      self.projection = _conv(inputs, width, 1, stride)
      self.projection_norm = nn.BatchNorm2d(width)

  def forward(self, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the feature [batch, channels, height, width]."""
    x = functional.relu(self.norm1(self.conv1(inputs)))
    x = self.norm2(self.conv2(x))
    if self.projection is not None:
      inputs = self.projection_norm(self.projection(inputs))
    return functional.relu(x + inputs)


class ResNet(nn.Module):
  """The model `kdih.models.resnet.ResNet` with basic blocks and the stem for small images."""

  def __init__(self, model: Any):
    super().__init__()
    self.stem, self.stem_norm = _conv(3, model.stem_width), nn.BatchNorm2d(model.stem_width)
    self.stages, inputs = [], model.stem_width
    for i, (size, width) in enumerate(zip(model.stage_sizes, model.stage_widths, strict=True), 1):
      names = [f'stage{i}_block{j}' for j in range(1, size + 1)]
      for name in names:
        stride = 2 if i > 1 and name == names[0] else 1
        self.add_module(name, BasicBlock(inputs, width, stride))
        inputs = width
      self.stages.append(names)
    self.classifier = nn.Linear(inputs, model.num_classes)

  def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Tap]:
    """Returns the logits [batch, classes] and {tap: feature}."""
    x, taps = functional.relu(self.stem_norm(self.stem(images))), {}
    for i, names in enumerate(self.stages, 1):
      for name in names:
        x = getattr(self, name)(x)
      taps[f'stage{i}'] = x
    return self.classifier(x.float().mean((2, 3))), taps


class PreActivationBlock(nn.Module):
  """The block `kdih.models.wide_resnet.PreActivationBlock`."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
    self.conv1, self.conv2 = _conv(inputs, width, 3, stride), _conv(width, width)
    changes = inputs != width or stride != 1
    self.projection = _conv(inputs, width, 1, stride) if changes else None

  def forward(self, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the shortcut and the residual."""
    activated = functional.relu(self.norm1(inputs))
    x = self.conv2(functional.relu(self.norm2(self.conv1(activated))))
    return x + (inputs if self.projection is None else self.projection(activated))


class WideResNet(nn.Module):
  """The model `kdih.models.wide_resnet.WideResNet` without biases in its convolutions."""

  def __init__(self, model: Any):
    super().__init__()
    self.stem, self.stages, inputs = _conv(3, 16), [], 16
    for i, base in enumerate((16, 32, 64), 1):
      names = [f'stage{i}_block{j}' for j in range(1, (model.depth - 4) // 6 + 1)]
      for name in names:
        stride = 2 if i > 1 and name == names[0] else 1
        self.add_module(name, PreActivationBlock(inputs, base * model.widening, stride))
        inputs = base * model.widening
      self.stages.append(names)
    self.final_norm = nn.BatchNorm2d(inputs)
    self.classifier = nn.Linear(inputs, model.num_classes)

  def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Tap]:
    """Returns the logits [batch, classes] and {tap: feature}."""
    x, taps = self.stem(images), {}
    for i, names in enumerate(self.stages, 1):
      for name in names:
        x = getattr(self, name)(x)
      taps[f'stage{i}'] = x
    x = functional.relu(self.final_norm(x))
    return self.classifier(x.float().mean((2, 3))), taps


class Head(nn.Module):
  """A linear layer on a flattened feature.

  Args:
    inputs: the number of elements of a feature.
    num_classes: the number of classes.
    channels_last: whether a feature is flattened as [height, width, channels], and not as
      [channels, height, width].
  """

  def __init__(self, inputs: int, num_classes: int, channels_last: bool):
    super().__init__()
    self.dense, self._channels_last = nn.Linear(inputs, num_classes), channels_last

  def forward(self, feature: torch.Tensor) -> torch.Tensor:
    """Returns the logits [batch, classes]."""
    feature = feature.permute(0, 2, 3, 1) if self._channels_last else feature
    return self.dense(feature.float().flatten(1))


def load(model: nn.Module, variables: dict[str, Any]) -> nn.Module:
  """Copies Flax variables into a model and returns it.

  Raises:
    ValueError: the model and the variables do not have the same parameters.
  """
  state = {}
  for collection, names in (('params', {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}),
                            ('batch_stats', {'mean': 'running_mean', 'var': 'running_var'})):
    for path, leaf in flax.traverse_util.flatten_dict(variables.get(collection, {})).items():
      state['.'.join((*path[:-1], names[path[-1]]))] = torch.from_numpy(transposed(leaf))
  missing, unexpected = model.load_state_dict(state, strict=False)
  wrong = [name for name in missing if not name.endswith('num_batches_tracked')] + unexpected
  if wrong:
    raise ValueError(f'the PyTorch model and the Flax variables differ in {wrong[0]}')
  return model


def transposed(leaf: Any) -> np.ndarray:
  """Returns a copy of a parameter with the axes of PyTorch: outputs, inputs, height, width."""
  axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(np.ndim(leaf), (0,))
  return np.array(np.transpose(leaf, axes), order='C')


def make_head(
    kernel: np.ndarray, bias: np.ndarray, shape: tuple[int, ...], channels_last: bool
) -> Head:
  """Returns the head of a tap, from the parameters of its Dense layer.

  Args:
    kernel: [elements of the feature, classes].
    bias: [classes].
    shape: the shape of the feature, (height, width, channels).
    channels_last: see `Head`.
  """
  if not channels_last:
    kernel = np.reshape(kernel, (*shape, -1)).transpose(2, 0, 1, 3).reshape(kernel.shape)
  inputs, num_classes = kernel.shape
  head = Head(inputs, num_classes, channels_last)
  load(head, {'params': {'dense': {'kernel': kernel, 'bias': bias}}})
  return head
