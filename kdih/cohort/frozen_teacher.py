"""The frozen teacher, made fast: its batch norms folded into convolutions, a dtype of its own.

Its outputs change by rounding alone.
"""
import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from kdih import errors
from kdih.models import layers, taps as taps_lib
from kdih.models.mobilenet import MobileNetV2
from kdih.models.resnet import ResNet
from kdih.models.shufflenet import ShuffleNet
from kdih.models.taps import Variables
from kdih.models.vgg import VGG
from kdih.models.wide_resnet import WideResNet

# The models whose batch norms can be folded. A norm 'norm1' or 'stem_norm' normalises the output
# of 'conv1' or 'stem', except for these; None for a norm that does not follow a convolution.
_CONVOLUTIONS: dict[type[nn.Module], dict[str, str | None]] = {
    ResNet: {}, VGG: {}, MobileNetV2: {}, ShuffleNet: {'norm2': 'depthwise'},
    WideResNet: {'norm1': None, 'norm2': 'conv1', 'final_norm': None}}


def check_dtype(model: nn.Module, dtype: str) -> None:
  """Raises ConfigError if `model` cannot compute in `dtype`, a value of `teacher_dtype`."""
  if dtype and 'dtype' not in {field.name for field in dataclasses.fields(model)}:
    raise errors.ConfigError(
        f'config.compute.teacher_dtype: {type(model).__name__} has no field dtype to set to '
        f"{dtype}; give it one, or leave this ''")


def prepare(
    model: nn.Module, variables: Variables, taps: Sequence[str], *, fold_batch_norm: bool,
    dtype: str,
) -> tuple[nn.Module, Variables]:
  """Returns the module and the variables with which `taps.observe` runs fast.

  Args:
    model: the module of a frozen teacher.
    variables: its variables.
    taps: the names of all taps that will be read.
    fold_batch_norm: whether to `fold`.
    dtype: the dtype to compute in; '' for the dtype of `model`.
  """
  if dtype:
    model = model.clone(dtype=jnp.dtype(dtype))
  if fold_batch_norm:
    variables = fold(model, variables, taps)
  return model, variables


def fold(model: nn.Module, variables: Variables, taps: Sequence[str]) -> Variables:
  """Folds the batch norms of one of kdih's models into the convolutions before them.

  Kernel and bias of a convolution are multiplied by scale / sqrt(var + epsilon) of its norm; the
  norm becomes an addition of `taps.FOLDED`'s 'shift'. Models of other classes stay as they are.

  Args:
    model: a module in evaluation mode.
    variables: its {'params', 'batch_stats'}.
    taps: the names of all taps that will be read; a convolution that is a tap is kept.
  """
  if type(model) not in _CONVOLUTIONS:
    return variables
  params, stats = (flax.traverse_util.flatten_dict(variables[kind])
                   for kind in ('params', 'batch_stats'))
  dtype = getattr(model, 'dtype', jnp.float32)
  shifts = {}
  for norm in {path[:-1] for path in stats}:
    conv = _convolution(type(model), norm)
    if conv is None or '/'.join(conv) in taps:
      continue
    scale, bias, mean, var = (
        np.asarray(value, np.float64) for value in (
            params[*norm, 'scale'], params[*norm, 'bias'], stats[*norm, 'mean'],
            stats[*norm, 'var']))
    factor = scale / np.sqrt(var + layers.EPSILON)
    for weights in ((*conv, 'kernel'), (*conv, 'bias')):
      if weights in params:
        params[weights] = jnp.asarray(np.asarray(params[weights], np.float64) * factor, dtype)
    shifts[*norm, 'shift'] = jnp.asarray(bias - mean * factor, jnp.float32)
  return {**variables, 'params': flax.traverse_util.unflatten_dict(params),
          taps_lib.FOLDED: flax.traverse_util.unflatten_dict(shifts)}


def _convolution(model: type[nn.Module], norm: tuple[str, ...]) -> tuple[str, ...] | None:
  """Returns the path of the convolution whose output a norm normalises."""
  name = _CONVOLUTIONS[model].get(norm[-1], re.sub('^norm', 'conv', norm[-1]).removesuffix('_norm'))
  return None if name is None else (*norm[:-1], name)
