"""Costs of ImageNet training on a TPU, from XLA's compiler; this needs libtpu, but no TPU."""
import importlib.metadata
import math
import os
import re
from typing import Any

import jax

from kdih import errors
from launch.studies.scaling import problem

TOPOLOGIES = {'TPU v4': 'v4:2x2x2', 'TPU v5e': 'v5e:2x4'}  # Slices of eight chips.
_COMMON: dict[str, Any] = dict(
    image_size=224, num_classes=1000, kind='gap', dtype='bfloat16', padding=0)
# The sizes of DeiT-S and DeiT-Ti (Touvron et al., 2021, table 1).
PAIRS: dict[str, dict[str, Any]] = {
    'resnet50 → resnet18': dict(
        _COMMON, teacher='resnet50_imagenet', student='resnet18_imagenet'),
    'ViT-S/16 → ViT-Ti/16': dict(
        _COMMON, teacher='vit_tiny', student='vit_tiny', student_fields={'patch_size': 16},
        teacher_fields={'patch_size': 16, 'width': 384, 'num_heads': 6}),
}
_RESNETS, _VITS = PAIRS
# The cases to compile, in order: pair, chip, images per chip, rematerialisation.
COMPILED = [*((pair, 'TPU v4', batch, False) for batch in (128, 4, 512, 64)
              for pair in (_RESNETS, _VITS)),
            (_RESNETS, 'TPU v5e', 128, False), (_RESNETS, 'TPU v4', 512, True)]
_SIZES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}
_ALL_REDUCE = re.compile(r'= (\(.*?\)|\S+) all-reduce(?:-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


def compile_for(pair: str, chip: str, batch: int, remat: bool) -> dict[str, Any]:
  """Compiles one step for eight chips, which takes minutes, and returns its costs per chip.

  Args:
    pair: one of `PAIRS`.
    chip: one of `TOPOLOGIES`.
    batch: images per chip.
    remat: `config.compute.remat`.

  Returns:
    The case; the bytes of 'memory' by their use; 'flops' and 'bytes_moved' from XLA's cost
    analysis; the number of 'all_reduces' and their bytes; the bytes of the gradients; versions.

  Raises:
    ConfigError: libtpu is not installed.
  """
  devices = _devices(chip)
  fields = dict(PAIRS[pair], batch_size=batch * len(devices), remat=remat)
  made = problem.build(problem.Training(**fields))
  compiled: Any = problem.compiled_for(made, devices)
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
  reduced = all_reduced(compiled.as_text())
  return {
      'pair': pair, 'chip': chip, 'batch': batch, 'remat': remat,
      'memory': {**held(made), 'images': batch * math.prod(made.feed['image'].shape[2:]),
                 'activations': memory.temp_size_in_bytes,
                 'program': memory.generated_code_size_in_bytes},
      'flops': costs['flops'], 'bytes_moved': costs['bytes accessed'],
      'all_reduces': len(reduced), 'all_reduce_bytes': sum(reduced),
      'gradient_bytes': bytes_of(made.state.params),
      'versions': {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}}


def _devices(chip: str) -> list:
  from jax.experimental import topologies

  # Without these variables libtpu queries the network for the type of this machine.
  for name, value in {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
                      'TPU_WORKER_HOSTNAMES': 'localhost'}.items():
    os.environ.setdefault(name, value)
  try:
    return list(topologies.get_topology_desc(
        platform='tpu', topology_name=TOPOLOGIES[chip]).devices)
  except Exception as error:  # The type that jax raises without libtpu is not documented.
    raise errors.ConfigError(
        f"--only: compiling for a {chip} needs libtpu ({errors.first_line(error)}); pip install "
        "'.[tpu]'") from error


def held(made: problem.Step) -> dict[str, int]:
  """Returns the bytes that each device keeps from step to step, by their use."""
  return {'student': bytes_of((made.state.params, made.state.collections)),
          'optimizer': bytes_of(made.state.opt_state),
          'teacher': bytes_of(made.frozen['teacher']),
          'heads': bytes_of(made.frozen.get('heads', {}))}


def bytes_of(tree: Any) -> int:
  """Returns the bytes of all arrays, or shapes of arrays, in a tree."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def all_reduced(program: str) -> list[int]:
  """Returns the bytes of each all-reduce in the text of a compiled program."""
  return [sum(_SIZES[kind] * math.prod(map(int, filter(None, shape.split(','))))
              for kind, shape in _SHAPE.findall(match) if kind in _SIZES)
          for match in _ALL_REDUCE.findall(program)]
