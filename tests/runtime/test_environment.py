"""What is set for the whole process."""
import ctypes
import grp
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import subprocess
import sys
import tempfile

import jax
import pytest

from kdih import errors, main
from kdih.config import fields
from kdih.models import cost
from kdih.runtime import environment, program, run_files
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
  """As on Windows, where the running program cannot be opened as a library, and with musl."""
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
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
    ('0.13.0', ' --xla_dump_to="a  b"', '--xla_dump_to="a  b" --xla_gpu_deterministic_ops=true'),
    ('0.12.0.1', '--xla_cpu_experimental_ynn_fusion_type=dot --xla_gpu_deterministic_ops=false',
     '--xla_cpu_experimental_ynn_fusion_type=dot --xla_gpu_deterministic_ops=false')])
def test_flags_of_the_user_are_kept_and_unknown_ones_never_set(
    monkeypatch, version, given, expected):
  monkeypatch.setenv('XLA_FLAGS', given)
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  environment.set_xla_flags(deterministic=True)
  assert os.environ['XLA_FLAGS'] == expected


def test_the_flags_in_a_file_that_xla_flags_names_are_kept(tmp_path, monkeypatch):
  (tmp_path / 'flags').write_text('--xla_cpu_enable_fast_math=false\n'
                                  '--xla_gpu_deterministic_ops=false\n')
  monkeypatch.setenv('XLA_FLAGS', str(tmp_path / 'flags'))
  environment.set_xla_flags(deterministic=True)
  assert os.environ['XLA_FLAGS'].split()[:2] == ['--xla_cpu_enable_fast_math=false',
                                                 '--xla_gpu_deterministic_ops=false']
  assert '--xla_gpu_deterministic_ops=true' not in os.environ['XLA_FLAGS']


@pytest.mark.parametrize(('given', 'words'), [
    ('--xla_nonsense=3', 'Unknown flag in XLA_FLAGS: --xla_nonsense=3'),
    ('--flagfile=/x', 'Unknown flag in XLA_FLAGS: --flagfile=/x'),
    ('--xla_cpu_enable_fast_math=maybe', "Couldn't interpret value maybe for flag "),
    ('/no/such/file', 'neither a flag'), ('/', 'neither a flag')])
def test_flags_that_would_end_the_process_are_refused(monkeypatch, given, words):
  monkeypatch.setenv('XLA_FLAGS', given)
  with pytest.raises(errors.ConfigError) as raised:
    environment.set_xla_flags(deterministic=True)
  text = str(raised.value)
  assert text.startswith('XLA_FLAGS: ') and words in text and '\n' not in text
  assert os.environ['XLA_FLAGS'] == given


@pytest.mark.parametrize('make', [
    os.mkfifo, lambda path: path.symlink_to('/dev/zero'),
    lambda path: path.write_text('--xla_dump_to=x ' * 2**13), lambda path: path.write_text('/x'),
    lambda path: path.write_bytes(b'--\xff')], ids=['pipe', 'endless', 'long', 'path', 'bytes'])
def test_flags_in_a_file_that_does_not_end_or_holds_none_are_refused(tmp_path, monkeypatch, make):
  """The path in a file would be that of another one, for XLA, which may be a pipe."""
  make(tmp_path / 'flags')
  monkeypatch.setenv('XLA_FLAGS', str(tmp_path / 'flags'))
  with pytest.raises(errors.ConfigError, match='nor a file of flags that can be read'):
    environment.set_xla_flags(deterministic=True)


def test_flags_that_are_not_read_in_time_are_taken_with_a_warning(monkeypatch, capsys):
  monkeypatch.setattr(environment, '_PATIENCE', 0.01)  # Python itself takes longer to start.
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=never_read')
  environment.set_xla_flags(deterministic=True)
  assert os.environ['XLA_FLAGS'].startswith('--xla_dump_to=never_read ')
  assert 'XLA_FLAGS: not checked, because another process' in capsys.readouterr().err


def test_a_library_that_refuses_a_variable_is_named(tmp_path, monkeypatch):
  (tmp_path / 'reads_variables.py').write_text('raise ValueError("X is not a number\\nat all")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(errors.ConfigError) as raised:
    environment.import_library('reads_variables')
  assert str(raised.value) == ('reads_variables: cannot be imported (X is not a number); correct '
                               'the environment variables that it reads')


@pytest.fixture
def homeless(monkeypatch, tmp_path):
  """A user without HOME whom the system does not know, as in a container with any user number."""
  def unknown(*_):
    raise KeyError('uid not found')

  monkeypatch.setattr(pwd, 'getpwuid', unknown)
  monkeypatch.setattr(pwd, 'getpwnam', unknown)
  monkeypatch.setattr(grp, 'getgrgid', unknown)
  monkeypatch.delenv('HOME')
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  return tmp_path


def test_without_a_home_folder_one_in_the_temporary_folder_serves(homeless, monkeypatch, capsys):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  seen = []

  def body(_):
    environment.set_environment({})
    seen.append((os.path.expanduser('~'), str(environment.compiled_folder(''))))
    return 0

  for _ in range(2):
    assert program.main(['kdih'], '', body) == 0
    assert 'set HOME' in capsys.readouterr().err
  home = homeless / f'kdih-home-{os.getuid()}'
  assert seen == [(str(home), f'{home}/.cache/kdih/compiled')] * 2
  assert home.stat().st_mode & 0o777 == 0o700
  assert 'HOME' not in os.environ


def test_a_temporary_home_folder_of_another_user_is_refused(homeless):
  (homeless / 'theirs').mkdir()
  (homeless / f'kdih-home-{os.getuid()}').symlink_to(homeless / 'theirs')
  with pytest.raises(errors.ConfigError, match='HOME: is not set, and .* set HOME'):
    environment.set_environment({})


@pytest.mark.slow
def test_an_unknown_user_trains(homeless):
  """With a data set and compiled programs in the home folder."""
  environment.provide_home()
  results = main.run(read_config(homeless, '', '--config.student.methods=ce'), '~/w')
  assert results['compression']
  assert (homeless / f'kdih-home-{os.getuid()}' / 'w' / 'results.json').is_file()


@pytest.mark.usefixtures('homeless')
def test_the_files_of_an_unknown_user_are_read(finished):
  """`epath` fails at their status."""
  assert cost.bytes_on_disk(finished) > 0
  assert run_files.read_result(finished, 'teacher')


def test_an_unwritable_folder_of_compiled_programs_is_refused_unless_it_is_the_default(
    tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  (tmp_path / '.cache').touch()
  monkeypatch.setenv('HOME', str(tmp_path))
  environment.compiled_folder('')
  with pytest.raises(errors.ConfigError, match='^config.compute.compilation_cache: .* is a file'):
    environment.compiled_folder('~/.cache/kdih/compiled')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'a://b')
  with pytest.raises(errors.ConfigError, match='^JAX_COMPILATION_CACHE_DIR: '):
    environment.compiled_folder('')
