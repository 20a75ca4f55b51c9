"""PyTorch beside kdih: both forms, checked against kdih's numbers before they are timed."""
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

# How far an array may be off: the largest difference over the largest number; of an update, the
# norms of both. There an input of a ReLU that is 0 but for rounding, and above it in one of the two
# alone, changes the gradient of a whole channel by some per cent.
_TOLERANCES = {'input': 1e-5, 'members': 1e-3, 'student': 1e-3, 'loss': 1e-4, 'update': 3e-2}


class Peer:
  """Both forms, ready to be timed.

  Args:
    pair: whose numbers and images they get.
    names: of teacher and student.
    precision: of the tuned form; the paper's is float32.

  Raises:
    ConfigError: a model that there is not in PyTorch.
    TrainingError: one of them does not compute what kdih does.
  """

  def __init__(self, pair: programs.ModelPair, names: tuple[str, str], precision: str):
    threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(threads or 1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    # Compared in full float32, and each pair anew. Of its own accord PyTorch takes TensorFloat-32
    # for convolutions on a GPU, which is off by more than the tolerances allow.
    _allow_tensor_float_32(False)
    forms: dict[str, Any] = {
        'torch_paper': forms_lib.Paper(pair, names, device),
        'torch_tuned': tuned.Tuned(pair, names, device, precision='float32')}
    forms['torch_tuned'].compile()
    with jax.default_matmul_precision('highest'):
      expected = _expected(pair, names)
    self.deviations = {name: _compare(name, form, expected) for name, form in forms.items()}
    # As fast as jax, which takes TensorFloat-32 for float32 on a GPU.
    _allow_tensor_float_32(True)
    torch.backends.cudnn.benchmark = True
    if precision != 'float32':
      forms['torch_tuned'] = tuned.Tuned(pair, names, device, precision=precision)
      forms['torch_tuned'].compile()
    forms['torch_tuned'].capture()
    self._forms = forms

  def items(self) -> list[Item]:
    """Both, with their input."""
    return [Item(name, form.seconds) for name, form in self._forms.items()]

  def report(self) -> dict[str, Any]:
    """What they are made of, and how far their numbers were from kdih's."""
    return {'threads': torch.get_num_threads(),
            'omp_wait_policy': os.environ.get('OMP_WAIT_POLICY', ''),
            'deviations': self.deviations,
            'tolerances': _TOLERANCES,
            'forms': {name: form.note for name, form in self._forms.items()}}


def _allow_tensor_float_32(allowed: bool) -> None:
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _expected(pair: programs.ModelPair, names: tuple[str, str]) -> dict[str, Any]:
  """kdih's numbers of its first step, all in float32."""
  if pair.built.student.dtype != jnp.float32:
    # With the same numbers: made again, the teacher's running statistics need not be the same, for
    # the first time a GPU may have computed them in TensorFloat-32.
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
  """How far each of the form's numbers is off; raises TrainingError where it is too far."""
  found = _found(form, expected)
  off = {}
  for part, tolerance in _TOLERANCES.items():
    off[part] = max(_off(one, other, part) for one, other in zip(*found[part], strict=True))
    if not off[part] <= tolerance:
      raise errors.TrainingError(
          f'--peer=torch: {part} of {name} is off by {off[part]:.2g} of its size, more than '
          f'{tolerance:g}; nothing was timed')
  return off


def _found(form: Any, expected: dict[str, Any]) -> dict[str, tuple[list, list]]:
  """{what: (arrays of the form, arrays of kdih)}."""
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


def _off(one: np.ndarray, other: np.ndarray, part: str) -> float:
  if part == 'update':
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
  return float(np.abs(one - other).max() / np.abs(other).max())
