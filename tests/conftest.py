"""Settings of every test: four CPU devices, strict shapes, warnings as errors."""
import os
import pathlib
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'

# Compiled programs are shared by the tests, by the workers of `pytest -n`, and by the processes
# that they start.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp(prefix='kdih-compiled-'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# A program of a test runs a few times, and what takes long is to compile it.
if 'xla_backend_optimization_level' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0')

from kdih.runtime import environment, logs  # noqa: E402

environment.set_xla_flags(deterministic=True)  # As in the processes that tests start.
logs.configure()

import pytest  # noqa: E402

from tests.helpers.runs import read_config  # noqa: E402


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the slow tests too')


def pytest_configure(config):
  config.addinivalue_line('markers', 'slow: takes more than a few seconds; run with --slow')
  config.addinivalue_line('filterwarnings', r'error:::(kdih|tests\.)')


def pytest_collection_modifyitems(config, items):
  if config.getoption('--slow'):
    return
  for item in items:
    if item.get_closest_marker('slow'):
      item.add_marker(pytest.mark.skip(reason='slow; run with --slow'))


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory) -> str:
  """A TFDS folder in which digits is prepared."""
  from kdih.data import datasets
  config = read_config(pathlib.Path('unused'), 'unused')
  config.data.data_dir = str(tmp_path_factory.mktemp('tfds'))
  datasets.prepare(datasets.open_builder(config.data))
  return config.data.data_dir


@pytest.fixture(scope='session')
def finished(tmp_path_factory, digits_dir) -> pathlib.Path:
  """The workdir of a tiny run that has ended. Tests must not change it."""
  from kdih import main
  workdir = tmp_path_factory.mktemp('finished')
  main.run(read_config(workdir, digits_dir), workdir)
  return workdir
