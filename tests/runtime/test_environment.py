"""What is set for the whole process."""
import ctypes
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from kdih import main
from kdih.config import fields
from kdih.runtime import environment
from tests.helpers.runs import exported, read_config

_FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from kdih.runtime import environment
if sys.argv[1] == 'keep':
  environment.keep_freed_memory()
step = jax.jit(lambda x: (jnp.outer(x, x) @ jnp.outer(x, x)[:, :8]).sum(1))
for _ in range(5):
  jax.block_until_ready(step(jnp.ones(3500)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
  jax.block_until_ready(step(jnp.ones(3500)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
  """Page faults of 30 steps that need 49 MB each."""
  ran = subprocess.run([sys.executable, '-c', _FAULTS, keep], capture_output=True, text=True,
                       check=True, env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'})
  return int(ran.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='glibc alone')
def test_memory_that_a_step_has_freed_serves_the_next():
  assert faults('keep') < faults('not') / 5


def test_where_there_is_no_glibc_nothing_is_kept(monkeypatch):
  """As on Windows, where the running program cannot be opened as a library."""
  monkeypatch.setattr(sys, 'platform', 'win32')
  monkeypatch.setattr(ctypes, 'CDLL', None)  # Calling it would fail.
  environment.keep_freed_memory()


@pytest.mark.slow
def test_compiled_programs_are_kept_where_the_config_says(tmp_path, digits_dir, finished):
  before = jax.config.values['jax_compilation_cache_dir']
  config = read_config(tmp_path, digits_dir, '--config.phases=teacher',
                       '--config.compute.keep_freed_memory=False',
                       f'--config.compute.compilation_cache={tmp_path / "compiled"}')
  try:
    main.run(config, tmp_path / 'w')
    assert jax.config.values['jax_compilation_cache_dir'] == str(tmp_path / 'compiled')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  one, two = exported(tmp_path / 'w', 'teacher'), exported(finished, 'teacher')
  assert {name: value.tobytes() for name, value in one.items()} == {
      name: value.tobytes() for name, value in two.items()}


def test_a_folder_of_the_environment_is_kept(tmp_path):
  before = jax.config.values['jax_compilation_cache_dir']
  try:
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    environment.keep_compiled(fields.base().compute.compilation_cache)
    assert jax.config.values['jax_compilation_cache_dir'] == str(tmp_path)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize(('version', 'given', 'expected'), [
    ('0.10.2', '', '--xla_gpu_deterministic_ops=true '
                   '--xla_cpu_experimental_ynn_fusion_type=individual_dot'),
    ('0.9.2', '', '--xla_gpu_deterministic_ops=true'),
    ('0.13.0', '--a=1', '--a=1 --xla_gpu_deterministic_ops=true'),
    ('0.12.0.1', '--xla_cpu_experimental_ynn_fusion_type=dot --xla_gpu_deterministic_ops=false',
     '--xla_cpu_experimental_ynn_fusion_type=dot --xla_gpu_deterministic_ops=false')])
def test_flags_of_the_user_are_kept_and_unknown_ones_never_set(
    monkeypatch, version, given, expected):
  monkeypatch.setenv('XLA_FLAGS', given)
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  environment.set_xla_flags(deterministic=True)
  assert os.environ['XLA_FLAGS'] == expected
