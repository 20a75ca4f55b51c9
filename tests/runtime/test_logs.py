"""The log: its levels and flags, the progress bar beside it, notebooks, several processes."""
import io
import logging
import sys
import types

import pytest

from kdih import errors, main
from kdih.benchmark import __main__ as benchmark
from kdih.report import __main__ as report
from kdih.runtime import logs, processes, program
from kdih.runtime.progress import Progress
from kdih.sweep import __main__ as sweep
from tests.helpers.runs import read_config, tiny_command

logger = logging.getLogger('kdih.test')
KDIH = logging.getLogger('kdih')


@pytest.fixture(autouse=True)
def unchanged():
  """Restores the level and the handlers of the log."""
  level, handlers, propagate = KDIH.level, KDIH.handlers[:], KDIH.propagate
  yield
  KDIH.level, KDIH.handlers, KDIH.propagate = level, handlers, propagate
  KDIH.setLevel(level)  # Clears what loggers remember.


def log(_) -> int:
  logger.debug('a detail')
  logger.info('progress')
  logger.warning('a warning')
  return 0


@pytest.mark.parametrize(('flags', 'lines'), [
    ([], ['progress', 'a warning']), (['-q'], ['a warning']), (['--quiet'], ['a warning']),
    (['-v'], ['a detail', 'progress', 'a warning']),
    (['--verbose'], ['a detail', 'progress', 'a warning']),
    (['-q', '-v'], ['a detail', 'progress', 'a warning']), (['-v', '-q'], ['a warning'])])
def test_flags_choose_what_is_logged_and_the_last_one_counts(capsys, flags, lines):
  assert program.main(['kdih', *flags], '', log) == 0
  out, err = capsys.readouterr()
  assert err.splitlines() == lines and out == ''


def test_a_flag_lasts_for_its_command_and_the_program_does_not_see_it(capsys):
  seen = []
  program.main(['kdih', '-q', '--x', '-v', '-q'], '', lambda argv: seen.append(argv) or 0)
  assert seen == [['kdih', '--x']]
  program.main(['kdih'], '', log)
  assert capsys.readouterr().err.splitlines() == ['progress', 'a warning']


@pytest.mark.parametrize(('flags', 'has_traceback'), [([], False), (['-v'], True), (['-q'], False)])
def test_the_traceback_of_an_error_is_a_detail_above_its_line(capsys, flags, has_traceback):
  def fail(_):
    raise errors.ConfigError('config.seed: is wrong')

  assert program.main(['kdih', *flags], '', fail) == 2
  *above, line = capsys.readouterr().err.splitlines()
  assert line == 'kdih: config.seed: is wrong'
  assert ('Traceback (most recent call last):' in above) == has_traceback
  assert bool(above) == has_traceback


@pytest.mark.parametrize('one', [main.main, sweep.main, report.main, benchmark.main])
def test_every_program_lists_the_flags_in_its_help(capsys, one):
  assert one(['kdih', '--help']) == 0
  out, err = capsys.readouterr()
  assert logs.USAGE in out and '-v, --verbose' in out and '-q, --quiet' in out and err == ''


def test_a_run_logs_details_or_only_warnings(tmp_path, digits_dir, capsys):
  def lines(*flags):
    command = tiny_command(tmp_path / ''.join(flags), digits_dir, '--config.phases=teacher',
                           '--config.seed=7', '--config.data.validation_fraction=0', *flags)
    assert main.main(command) == 0
    return capsys.readouterr().err.splitlines()

  verbose = lines('-v')
  assert lines('-q') == []
  assert any(' epoch ' in line for line in verbose) and 'config.seed = 7' in verbose
  assert any(line.startswith('command line: ') and 'tiny_config.py' in line for line in verbose)
  assert any(line.endswith('wrote the checkpoint of step 2') for line in verbose)


class Terminal(io.StringIO):
  """A standard error that is a terminal."""

  def isatty(self):
    return True

  def shown(self) -> list[str]:
    """Returns the lines as they look in the end: what follows a carriage return overwrites."""
    lines = []
    for text in self.getvalue().replace('\x1b[A', '').split('\n'):
      line = ''
      for part in text.split('\r'):
        line = part + line[len(part):]
      lines.append(line.rstrip())
    return lines


def show_progress() -> None:
  progress = Progress(phase='teacher', total_steps=10, start_step=0, steps_per_epoch=5,
                      batch_size=4)
  progress.update(2, {'loss': 1.5}, 0.0)  # No step has been timed.
  logger.info('a line of the log')
  progress.update(4, {'loss': 1.0}, 100.0)
  progress.close()


def test_the_log_and_the_progress_bar_do_not_overwrite_each_other(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Terminal())
  logs.configure(logging.INFO)
  show_progress()
  shown = sys.stderr.shown()
  assert 'a line of the log' in shown
  bar, = (line for line in shown if line.startswith('teacher: '))
  assert '4/10' in bar and 'loss 1.0000' in bar


def test_a_quiet_terminal_has_no_progress_bar(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Terminal())
  logs.configure(logging.WARNING)
  show_progress()
  assert sys.stderr.getvalue() == ''


def test_without_a_terminal_progress_is_a_line(capsys):
  logs.configure(logging.INFO)
  show_progress()
  assert capsys.readouterr().err.splitlines() == [
      'teacher: epoch 0.4/2.0 loss 1.5000', 'a line of the log',
      'teacher: epoch 0.8/2.0 loss 1.0000 100 examples/s ETA 0:00:00']


@pytest.mark.parametrize('number', [0, 1])
def test_only_the_first_process_logs(monkeypatch, capsys, number):
  jax = types.SimpleNamespace(
      distributed=types.SimpleNamespace(is_initialized=lambda: True), process_index=lambda: number)
  monkeypatch.setitem(sys.modules, 'jax', jax)
  assert processes.joined() and processes.is_first() == (number == 0)
  logs.configure(logging.DEBUG)
  logger.warning('x')
  show_progress()
  assert bool(capsys.readouterr().err) == (number == 0)


def teacher_alone(workdir, digits_dir):
  """The config of a run that warns of nothing."""
  return read_config(workdir, digits_dir, '--config.phases=teacher',
                     '--config.data.validation_fraction=0')


def test_a_notebook_sees_the_log_without_configuring_it(tmp_path, digits_dir, capsys):
  KDIH.handlers = []
  KDIH.setLevel(logging.NOTSET)
  main.run(teacher_alone(tmp_path, digits_dir), tmp_path)
  out, err = capsys.readouterr()
  assert ' epoch ' in err and 'wrote the checkpoint' not in err and out == ''


def test_a_handler_of_the_user_stays_the_only_one_with_its_level(tmp_path, digits_dir, capsys):
  text = io.StringIO()
  KDIH.handlers = [logging.StreamHandler(text)]
  KDIH.setLevel(logging.WARNING)
  main.run(teacher_alone(tmp_path, digits_dir), tmp_path)
  logger.warning('a warning')
  assert text.getvalue() == 'a warning\n' and capsys.readouterr().err == ''
  KDIH.setLevel(logging.NOTSET)
  logs.configure()
  logger.info('progress')
  assert text.getvalue() == 'a warning\nprogress\n' and len(KDIH.handlers) == 1


def test_no_line_holds_control_codes(capsys):
  def fail(_) -> int:
    logger.warning('a name\x1b[2J\rof a class\nand\ta line')
    raise errors.ConfigError('config.data.folder: /x/a\nb\x1b[31m is no image')

  assert program.main([], '', fail) == 2
  assert capsys.readouterr().err.split('\n') == [
      'a name\ufffd[2J of a class', 'and a line',
      'kdih: config.data.folder: /x/a b\ufffd[31m is no image', '']
