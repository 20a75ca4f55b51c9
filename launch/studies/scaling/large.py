"""What ImageNet needs on a TPU, asked of XLA's compiler for it; no TPU is needed, but libtpu is."""
import importlib.metadata
import math
import os
import re
from typing import Any

import jax

from kdih import errors
from launch.studies.scaling import problem

TOPOLOGIES = {'TPU v4': 'v4:2x2x2', 'TPU v5e': 'v5e:2x4'}  # Eight chips of each.
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
# Pair, chip, images on a chip, rematerialisation: what is compiled, in this order.
COMPILED = [*((pair, 'TPU v4', batch, False) for batch in (128, 4, 512, 64)
              for pair in (_RESNETS, _VITS)),
            (_RESNETS, 'TPU v5e', 128, False), (_RESNETS, 'TPU v4', 512, True)]
_SIZES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}
_ALL_REDUCE = re.compile(r'= (\(.*?\)|\S+) all-reduce(?:-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


def compile_for(pair: str, chip: str, batch: int, remat: bool) -> dict[str, Any]:
  """What one step needs on each of eight chips; takes minutes.

  Args:
    pair: one of `PAIRS`.
    chip: one of `TOPOLOGIES`.
    batch: images on each chip.
    remat: as `config.compute.remat`.

  Returns:
    Bytes of memory on a chip by what fills it, FLOPs and bytes moved by XLA's cost analysis, and
    how many all-reduces there are, of how many bytes in all.

  Raises:
    ConfigError: libtpu is not installed.
  """
  devices = _devices(chip)
  fields = dict(PAIRS[pair], batch_size=batch * len(devices), remat=remat)
  made = problem.build(problem.Setup(**fields))
  compiled: Any = problem.compiled_for(made, devices)
  found, costs = compiled.memory_analysis(), compiled.cost_analysis()
  reduced = all_reduced(compiled.as_text())
  return {
      'pair': pair, 'chip': chip, 'batch': batch, 'remat': remat,
      'memory': {**held(made), 'images': batch * math.prod(made.feed['image'].shape[2:]),
                 'activations': found.temp_size_in_bytes,
                 'program': found.generated_code_size_in_bytes},
      'flops': costs['flops'], 'bytes_moved': costs['bytes accessed'],
      'all_reduces': len(reduced), 'all_reduce_bytes': sum(reduced),
      'gradient_bytes': bytes_of(made.state.params),
      'versions': {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}}


def _devices(chip: str) -> list:
  from jax.experimental import topologies

  # Else libtpu asks the network which TPU this machine is.
  for name, value in {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
                      'TPU_WORKER_HOSTNAMES': 'localhost'}.items():
    os.environ.setdefault(name, value)
  try:
    return list(topologies.get_topology_desc(
        platform='tpu', topology_name=TOPOLOGIES[chip]).devices)
  except Exception as error:  # Whatever jax raises where there is no libtpu.
    raise errors.ConfigError(
        f"--only: compiling for a {chip} needs libtpu ({errors.first_line(error)}); pip install "
        "'.[tpu]'") from error


def held(made: problem.Step) -> dict[str, int]:
  """Bytes that every device holds from step to step, by what they are."""
  return {'student': bytes_of((made.state.params, made.state.collections)),
          'optimizer': bytes_of(made.state.opt_state),
          'teacher': bytes_of(made.frozen['teacher']),
          'heads': bytes_of(made.frozen.get('heads', {}))}


def bytes_of(tree: Any) -> int:
  """Bytes of all arrays of a tree, which may be shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def all_reduced(program: str) -> list[int]:
  """Bytes of each all-reduce in the text of a compiled program."""
  return [sum(_SIZES[kind] * math.prod(map(int, filter(None, shape.split(','))))
              for kind, shape in _SHAPE.findall(match) if kind in _SIZES)
          for match in _ALL_REDUCE.findall(program)]
