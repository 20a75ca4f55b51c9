"""The modules of a run, built from the config and checked against each other by shape."""
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from kdih import methods, models, parallel, taps as taps_lib
from kdih.cohort import Heads
from kdih.data import DataSpec
from kdih.methods import Method


@dataclasses.dataclass(frozen=True)
class Modules:
  """What a run trains and applies.

  Attributes:
    spec: of the data set.
    teacher: its module.
    student: its module.
    heads: the module of all heads.
    taps: {tap: shape of one example's feature}, in cohort order.
    methods: {name: how the student is taught}, the ones to run.
  """

  spec: DataSpec
  teacher: nn.Module
  student: nn.Module
  heads: Heads
  taps: dict[str, tuple[int, ...]]
  methods: dict[str, Method]


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Modules:
  """Builds the modules; nothing is computed.

  Raises:
    ConfigError: an unknown model, tap or method, or one that does not fit the data set.
  """
  teacher = _model(config, 'teacher', spec)
  student = _model(config, 'student', spec)
  taps = taps_lib.choose_taps(teacher, spec.image_shape, config.heads.taps)
  chosen = {name: methods.create(name, config.methods[name], len(taps) + 1)
            for name in config.student.methods}
  return Modules(spec, teacher, student, Heads(spec.num_classes, config.heads.kind), taps, chosen)


def _model(config: ml_collections.ConfigDict, role: str, spec: DataSpec) -> nn.Module:
  model = models.create(
      config[role].name, spec.num_classes, dtype=jnp.dtype(config.dtype),
      axis_name=parallel.AXIS if config.sync_batch_norm else None,
      setting=f'config.{role}.name', **config[role].kwargs.to_dict())
  taps_lib.check_model(model, spec.image_shape, spec.num_classes, f'config.{role}.name')
  return model


def initialise(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Any]:
  """Fresh {'params', 'batch_stats'} of a model for images of `image_shape`."""
  # XLA's optimisation of a program that runs once takes minutes for deep models on a CPU.
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False),
                 compiler_options={'xla_backend_optimization_level': 0})
  variables = init(key)
  return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}


def initialise_heads(modules: Modules, key: jax.Array) -> dict[str, Any]:
  """Fresh {'params'} of the heads."""
  features = {tap: jnp.zeros((1, *shape)) for tap, shape in modules.taps.items()}
  return dict(modules.heads.init(key, features))
