"""The command line and the config of a tiny run, and what it leaves behind."""
import pathlib

import jax
import ml_collections
import numpy as np

from kdih.config import flags
from kdih.training import orbax_files

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / 'tests/helpers/tiny_config.py'


def tiny_command(workdir, data_dir: str, *overrides: str) -> list[str]:
  """The command line of a tiny run."""
  return ['kdih', f'--config={CONFIG}', f'--workdir={workdir}',
          f'--config.data.data_dir={data_dir}', *overrides]


def read_config(workdir, data_dir: str, *overrides: str) -> ml_collections.ConfigDict:
  """The config of a tiny run."""
  return flags.read(tiny_command(workdir, data_dir, *overrides))[0]


def exported(workdir: pathlib.Path, phase: str) -> dict[str, np.ndarray]:
  """The exported variables of a phase, by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(
      orbax_files.restore(workdir / phase / 'variables'))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
