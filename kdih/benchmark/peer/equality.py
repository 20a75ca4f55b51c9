"""Compares the numbers of both PyTorch implementations with those of kdih, and times them."""
import dataclasses
import os
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch

from kdih import errors
from kdih.benchmark import programs
from kdih.benchmark.measuring import Item
from kdih.benchmark.peer import forms as forms_lib, networks, tuned
from kdih.cohort.members import FINAL, cohort_logits
from kdih.models import registry, taps
from kdih.runtime import devices

# The largest allowed deviation of an array: its largest difference over its largest number. For an
# update it is the norm of the difference over the norm. If rounding makes an input of a ReLU
# positive in only one of the two programs, the gradient of a whole channel changes by some per
# cent.
_TOLERANCES = {'input': 1e-5, 'members': 1e-3, 'student': 1e-3, 'loss': 1e-4, 'update': 3e-2}


class Peer:
  """Both PyTorch implementations, checked and ready to be timed.

  Args:
    pair: provides the variables and the images.
    names: the names of teacher and student.
    precision: the precision of the tuned implementation; that of the paper computes in float32.

  Raises:
    ConfigError: a model is not available in PyTorch.
    TrainingError: the numbers of an implementation differ from those of kdih.
  """

  def __init__(self, pair: programs.ModelPair, names: tuple[str, str], precision: str):
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(threads or 1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    # The comparison needs full float32. By default PyTorch uses TensorFloat-32 for convolutions on
    # a GPU, whose deviations are larger than the tolerances.
    _allow_tensor_float_32(False)
    forms: dict[str, Any] = {
        'torch_paper': forms_lib.Paper(pair, names, device),
        'torch_tuned': tuned.Tuned(pair, names, device, precision='float32')}
    forms['torch_tuned'].compile()
    with jax.default_matmul_precision('highest'):
      expected = _expected(pair, names)
    self.deviations = {name: _compare(name, form, expected) for name, form in forms.items()}
    # jax uses TensorFloat-32 for float32 on a GPU, and the times must be comparable.
    _allow_tensor_float_32(True)
    torch.backends.cudnn.benchmark = True
    if precision != 'float32':
      forms['torch_tuned'] = tuned.Tuned(pair, names, device, precision=precision)
      forms['torch_tuned'].compile()
    forms['torch_tuned'].capture()
    self._forms = forms

  def items(self) -> list[Item]:
    """Returns an item for each implementation, which includes its input."""
    return [Item(name, form.seconds) for name, form in self._forms.items()]

  def report(self) -> dict[str, Any]:
    """Returns the settings of both implementations, and their deviations from kdih."""
    return {'threads': torch.get_num_threads(),
            'omp_wait_policy': os.environ.get('OMP_WAIT_POLICY', ''),
            'deviations': self.deviations,
            'tolerances': _TOLERANCES,
            'forms': {name: form.note for name, form in self._forms.items()}}


def _allow_tensor_float_32(allowed: bool) -> None:
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _expected(pair: programs.ModelPair, names: tuple[str, str]) -> dict[str, Any]:
  """Returns the numbers of kdih's first step, all in float32."""
  if pair.built.student.dtype != jnp.float32:
    # The variables are kept, because a GPU may have computed the teacher's running statistics in
    # TensorFloat-32, and would compute others now.
    exact = programs.make_pair(*names, pair.batch_size, 'float32', pair.examples)
    pair = dataclasses.replace(exact, frozen=pair.frozen, student=pair.student)
  training = programs.Training(programs.student_problem(pair, 'dih'))
  index = next(iter(programs.student_problem(pair, 'dih').feeds(0, [1])))['index'].reshape(-1)
  key = jax.random.fold_in(jax.random.key(programs.SEED), 0)
  pixels, labels = pair.examples.read(index)
  images = jax.jit(pair.data.preprocess)(pixels, index, key)
  members = jax.jit(lambda frozen, images: cohort_logits(
      pair.built.teacher, pair.built.heads, frozen, images, tuple(pair.built.taps)))(
          pair.frozen, images)
  alone = registry.create(names[1], programs.SPEC.num_classes)
  student = jax.jit(lambda variables, images: taps.observe(
      alone, variables, images, (), train=True)[0].logits)(pair.student, images)
  state, metrics = training.step(*training.arguments())
  after = devices.to_host(state.params['student'])
  plain = jax.jit(pair.data.preprocess)(pixels, index, None)
  return {
      'index': index, 'images': np.asarray(images), 'labels': labels,
      'input': np.asarray(plain),
      'members': np.stack([np.asarray(members[name]) for name in (*pair.built.taps, FINAL)]),
      'student': np.asarray(student), 'loss': np.asarray(metrics['loss'][0]),
      'variables': pair.student, 'after': after,
  }


def _compare(name: str, form: Any, expected: dict[str, Any]) -> dict[str, float]:
  """Returns {part: deviation} of an implementation.

  Raises:
    TrainingError: a deviation is larger than its tolerance.
  """
  arrays = _arrays(form, expected)
  deviations = {}
  for part, tolerance in _TOLERANCES.items():
    deviations[part] = max(
        _deviation(one, other, part) for one, other in zip(*arrays[part], strict=True))
    if not deviations[part] <= tolerance:
      raise errors.TrainingError(
          f'--peer=torch: {part} of {name} deviates from kdih by {deviations[part]:.2g}, more than '
          f'{tolerance:g}; nothing was timed')
  return deviations


def _arrays(form: Any, expected: dict[str, Any]) -> dict[str, tuple[list, list]]:
  """Returns {part: (arrays of the implementation, arrays of kdih)}."""
  images, labels, index = (
      torch.from_numpy(np.array(expected[key])).to(form.device)
      for key in ('images', 'labels', 'index'))
  images, labels = images.permute(0, 3, 1, 2), labels.long()
  if not form.channels_last:
    images = images.contiguous()
  middle = torch.full_like(index, programs.AUGMENTATION['padding'])
  read = forms_lib.crop(form.images.to(form.device), index.long(), middle, middle,
                        torch.zeros_like(index, dtype=torch.bool))
  networks.load(form.student, expected['variables'])
  student = form.student(images)[0]
  networks.load(form.student, expected['variables'])
  form.optimizer.state.clear()
  members, loss = form.members(images), form.learn(images, labels)
  before = flax.traverse_util.flatten_dict(expected['variables']['params'])
  after = flax.traverse_util.flatten_dict(expected['after'])
  now = dict(form.student.named_parameters())
  names = {path: '.'.join((*path[:-1], 'bias' if path[-1] == 'bias' else 'weight'))
           for path in after}
  return {
      'input': ([_numpy(read).transpose(0, 2, 3, 1)], [expected['input']]),
      'members': ([_numpy(member) for member in members], list(expected['members'])),
      'student': ([_numpy(student)], [expected['student']]),
      'loss': ([_numpy(loss)], [expected['loss']]),
      'update': ([_numpy(now[names[path]]) - networks.transposed(before[path])
                  for path in after],
                 [networks.transposed(after[path] - before[path]) for path in after]),
  }


def _numpy(tensor: torch.Tensor) -> np.ndarray:
  return tensor.detach().float().cpu().numpy()


def _deviation(one: np.ndarray, other: np.ndarray, part: str) -> float:
  if part == 'update':
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
  return float(np.abs(one - other).max() / np.abs(other).max())
