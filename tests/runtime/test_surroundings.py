"""What a command leaves of its process, and where it can print."""
import asyncio
import errno
import gc
import io
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import jax
import orbax.checkpoint  # noqa: F401  As in a run.
import pytest
from absl import logging as absl_logging

from kdih import errors, main
from kdih.report import __main__ as report
from kdih.runtime import environment, preemption, program
from kdih.sweep import __main__ as sweep
from tests.helpers.runs import ROOT, tiny_command

TEXT = '3.0 ± 0.1 → é\n'


def surroundings() -> dict:
  """All that a command might change."""
  loggers = [logging.getLogger(name) for name in ('root', 'kdih', 'absl', 'asyncio')]
  return {
      'variables': dict(os.environ), 'streams': (sys.stdout, sys.stderr),
      'handlers': [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
      'hooks': (sys.unraisablehook, sys.excepthook), 'verbosity': absl_logging.get_verbosity(),
      'loggers': [(log.level, log.handlers[:], log.propagate) for log in loggers],
      'jax': {name: value for name, value in jax.config.values.items() if 'cache' in name}}


@pytest.fixture
def unprepared(monkeypatch, tmp_path):
  """A process in which nothing is set yet that a command sets."""
  for name in environment.VARIABLES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))


@pytest.mark.usefixtures('unprepared')
@pytest.mark.parametrize('one', [main.main, sweep.main])
def test_a_command_leaves_its_process_as_it_was(tmp_path, digits_dir, one):
  before = surroundings()
  assert one(tiny_command(tmp_path / 'w', digits_dir, '--dry_run', '--dry_run_seconds=0', '-v',
                          '--config.phases=teacher')) == 0
  assert surroundings() == before


@pytest.mark.usefixtures('unprepared')
@pytest.mark.parametrize('arguments', [['--help'], ['/no/such/folder']])
def test_a_report_leaves_its_process_as_it_was(arguments):
  before = surroundings()
  report.main(['kdih.report', '-q', *arguments])
  assert surroundings() == before


def change_everything(_) -> int:
  environment.set_environment({'deterministic': True})
  environment.keep_compiled('/no/such/folder')
  preemption.listening().__enter__()
  os.environ['HOME'] = '/'
  assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
  assert jax.config.values['jax_compilation_cache_dir'] == '/no/such/folder'
  return 0


@pytest.mark.usefixtures('unprepared')
@pytest.mark.parametrize('error', [
    None, errors.ConfigError('x'), errors.PreemptedError('x'), KeyboardInterrupt(),
    ZeroDivisionError('a bug'), SystemExit(3)])
def test_however_it_ends(error):
  def body(argv):
    code = change_everything(argv)
    if error:
      raise error
    return code

  before = surroundings()
  try:
    program.main(['kdih'], '', body)
  except (ZeroDivisionError, SystemExit) as raised:
    assert raised is error
  assert surroundings() == before


@pytest.mark.parametrize(('code', 'ignores'), [(0, False), (2, False), (75, True), (130, True)])
def test_a_process_that_ends_by_a_signal_ignores_others(code, ignores):
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  try:
    with pytest.raises(SystemExit) as raised:
      program.end(code)
    assert raised.value.code == code
    assert [signal.getsignal(number) for number in numbers] == (
        [signal.SIG_IGN] * 2 if ignores else before)
    assert not logging.getLogger('asyncio').isEnabledFor(logging.CRITICAL)
  finally:
    logging.disable(logging.NOTSET)
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


@pytest.mark.usefixtures('unprepared')
def test_what_failed_in_a_task_is_not_told_again_after_the_line_of_the_error(
    capsys, caplog):
  async def fails():
    raise ValueError('told again')

  async def start():
    cycle = [asyncio.ensure_future(fails())]
    await asyncio.sleep(0)
    cycle.append(cycle)  # Only a collection of garbage destroys the task, as those of orbax.

  def body(_):
    environment.set_environment({'deterministic': True})
    asyncio.run(start())
    raise errors.TrainingError('it failed')

  assert 'orbax.checkpoint' in sys.modules
  assert program.main(['kdih'], '', body) == 1
  gc.collect()
  assert capsys.readouterr().err == 'kdih: it failed\n' and not caplog.records


@pytest.mark.usefixtures('unprepared')
def test_a_loop_of_asyncio_that_finds_no_file_goes_in_silence(capsys, monkeypatch):
  def fails():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

  def body(_):
    environment.set_environment({'deterministic': True})
    monkeypatch.setattr(socket, 'socketpair', fails)
    with pytest.raises(OSError, match='Too many open files'):
      asyncio.new_event_loop()
    gc.collect()
    return 0

  assert program.main(['kdih'], '', body) == 0
  assert capsys.readouterr().err == ''


def listen(_) -> int:
  with preemption.listening():
    return 0


@pytest.mark.usefixtures('unprepared')
def test_a_command_runs_outside_of_the_main_thread():
  codes = []
  thread = threading.Thread(target=lambda: codes.append(program.main(
      ['kdih'], '', listen)))
  thread.start()
  thread.join()
  assert codes == [0]


def show(_) -> int:
  print(TEXT, end='')
  logging.getLogger('kdih.test').warning(TEXT)
  return 0


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8', 'cp1252'])
def test_what_an_encoding_lacks_is_printed_as_its_code(monkeypatch, encoding):
  shown = {}
  for name in ('stdout', 'stderr'):
    shown[name] = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(shown[name], encoding))
  assert program.main(['kdih'], '', show) == 0
  assert program.main(['kdih', '--help'], TEXT, show) == 0
  sys.stderr.flush()
  expected = TEXT.encode(encoding, 'backslashreplace')
  assert shown['stdout'].getvalue().count(expected) == 2
  assert expected in shown['stderr'].getvalue()


@pytest.mark.parametrize('buffering', [1, 8192])
@pytest.mark.parametrize('name', ['stdout', 'stderr'])
def test_a_reader_that_leaves_ends_nothing(monkeypatch, name, buffering):
  """As in `kdih.report … | head -1`, or at a terminal that is closed."""
  reader, writer = os.pipe()
  os.close(reader)
  stream = open(writer, 'w', encoding='utf-8', buffering=buffering)  # noqa: SIM115
  monkeypatch.setattr(sys, name, stream)
  ended = []
  assert program.main(['kdih'], '', lambda argv: show(argv) or show(argv) or ended.append(1) or 0
                      ) == 0
  assert ended == [1]
  stream.close()  # Nothing is left that fails at the exit.


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux alone')
@pytest.mark.parametrize('flags', [[], ['--help']])
def test_a_result_that_cannot_be_printed_is_an_error(monkeypatch, capsys, flags):
  stream = open('/dev/full', 'w', encoding='utf-8')  # noqa: SIM115
  monkeypatch.setattr(sys, 'stdout', stream)
  assert program.main(['kdih', *flags], TEXT, show) == 1
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith('kdih: ') and 'No space left' in line
  stream.close()


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux alone')
def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch, capsys):
  with open('/dev/full', 'w', encoding='utf-8', buffering=1) as stream:
    monkeypatch.setattr(sys, 'stderr', stream)
    assert program.main(['kdih'], '', show) == 0
  assert capsys.readouterr().out == TEXT


@pytest.mark.parametrize('closed', ['2>&-', '>&-', '<&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_files_do_not_take_the_place_of_closed_streams(tmp_path, closed):
  """Else what a library prints would be written to a checkpoint."""
  code = f"""
import logging, os, sys
from kdih.runtime import program
def body(_):
  with open({str(tmp_path / 'file')!r}, 'w') as file:
    for number in (1, 2):
      os.write(number, b'printed by a library\\n')
    print('a result')
    logging.getLogger('kdih').warning('a warning')
    print('to nobody', file=sys.stderr)
  return 7
sys.exit(program.main(['kdih'], '', body))
"""
  command = f'exec "$0" -c "$1" {closed}'
  done = subprocess.run(['sh', '-c', command, sys.executable, code], capture_output=True, text=True,
                        check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 7
  assert (tmp_path / 'file').read_text() == ''
  assert ('a result' in done.stdout) == ('>&-' not in closed.split())
  assert 'to nobody' not in done.stdout and 'a warning' not in done.stdout
  assert ('a warning' in done.stderr) == ('2>&-' not in closed)


def test_a_folder_that_has_been_removed_is_named(tmp_path, monkeypatch, capsys):
  gone = tmp_path / 'gone'
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  assert program.main(['kdih', '--help'], '', show) == 0
  capsys.readouterr()
  assert program.main(['kdih'], '', show) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith('kdih: the current folder has been removed; ') and err.count('\n') == 1
  monkeypatch.chdir(pathlib.Path('/'))
