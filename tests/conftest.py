"""Settings of every test: four CPU devices, strict shapes, warnings as errors."""
import atexit
import gc
import os
import pathlib
import shutil
import signal
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'

# Compiled programs are shared by the tests, by the workers of `pytest -n`, and by the processes
# that they start.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.mkdtemp(prefix='kdih-compiled-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# A program of a test runs a few times, and what takes long is to compile it.
if 'xla_backend_optimization_level' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0')

from kdih.runtime import devices, environment, logs  # noqa: E402

environment.set_xla_flags(deterministic=True)  # As in the processes that tests start.
logs.configure()

# A shell starts what runs in its background with this signal ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import filelock  # noqa: E402
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


def pytest_collection_finish():
  gc.freeze()  # What is imported lives as long as the tests; no collection has to look through it.


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """A worker compiles more programs than a process can hold."""
  yield
  devices.forget_programs()


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """(name, make) to a folder that `make` has filled, once for all workers of `pytest -n`."""
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent

  def folder(name, make) -> pathlib.Path:
    path = root / name
    with filelock.FileLock(root / f'{name}.lock'):
      if not path.exists():
        make(path)
    return path

  return folder


@pytest.fixture(scope='session')
def digits_dir(shared) -> str:
  """A TFDS folder in which digits is prepared."""
  from kdih.data import datasets

  def prepare(path):
    config = read_config(pathlib.Path('unused'), str(path))
    datasets.prepare(datasets.open_builder(config.data))

  return str(shared('tfds', prepare))


@pytest.fixture(scope='session')
def finished(shared, digits_dir) -> pathlib.Path:
  """The workdir of a tiny run that has ended. Tests must not change it."""
  from kdih import main
  return shared('finished', lambda workdir: main.run(read_config(workdir, digits_dir), workdir))
