"""Settings of every test: four CPU devices, strict shapes, warnings as errors."""
import os
import pathlib
import tempfile

TESTS = pathlib.Path(__file__).parent
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'

# Compiled programs are shared by the tests, by the workers of `pytest -n`, and by the processes
# that they start.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp(prefix='kdih-compiled-'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

from kdih import entry  # noqa: E402

entry.set_xla_flags(deterministic=True)  # As in the processes that tests start.

import jax  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from kdih import checkpoint, command_line  # noqa: E402


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the slow tests too')


def pytest_configure(config):
  config.addinivalue_line('markers', 'slow: takes more than a few seconds; run with --slow')
  config.addinivalue_line('filterwarnings', r'error:::(kdih|test_)')


def pytest_collection_modifyitems(config, items):
  if config.getoption('--slow'):
    return
  for item in items:
    if item.get_closest_marker('slow'):
      item.add_marker(pytest.mark.skip(reason='slow; run with --slow'))


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory) -> str:
  """A TFDS folder in which digits is prepared."""
  from kdih.data import builders
  config = read_config(pathlib.Path('unused'), 'unused')
  config.data.data_dir = str(tmp_path_factory.mktemp('tfds'))
  builders.prepare(builders.open_builder(config.data))
  return config.data.data_dir


def tiny_command(workdir, data_dir: str, *overrides: str) -> list[str]:
  """The command line of a tiny run."""
  return ['kdih', f'--config={TESTS / "tiny_config.py"}', f'--workdir={workdir}',
          f'--config.data.data_dir={data_dir}', *overrides]


def read_config(workdir, data_dir: str, *overrides: str) -> ml_collections.ConfigDict:
  """The config of a tiny run."""
  return command_line.read(tiny_command(workdir, data_dir, *overrides))[0]


@pytest.fixture(scope='session')
def finished(tmp_path_factory, digits_dir) -> pathlib.Path:
  """The workdir of a tiny run that has ended. Tests must not change it."""
  from kdih import pipeline
  workdir = tmp_path_factory.mktemp('finished')
  pipeline.run(read_config(workdir, digits_dir), workdir)
  return workdir


def exported(workdir: pathlib.Path, phase: str) -> dict[str, np.ndarray]:
  """The exported variables of a phase, by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(
      checkpoint.restore(workdir / phase / 'variables'))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
