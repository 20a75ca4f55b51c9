"""Any change of a valid config, argument or command line is fit to run, or refused in a line."""
import contextlib

import ml_collections
import pytest
from hypothesis import given, strategies as st

from kdih import errors, main
from kdih.config import arguments as arguments_lib, checks, flags
from kdih.data.spec import DataSpec
from kdih.phases import networks, pipeline
from tests.helpers.fuzzing import ANYTHING, JSON, TEXTS, times
from tests.helpers.runs import CONFIG, read_config

SPEC = DataSpec('digits', (8, 8, 1), 10)


def fields(config, prefix=''):
  """The path of every field and of every group."""
  for key, value in config.items():
    yield prefix + key
    if isinstance(value, ml_collections.ConfigDict):
      yield from fields(value, f'{prefix}{key}.')


BASE = read_config('unused', 'unused')
PATHS = sorted(fields(BASE))
MODELS = ['heads.taps', 'student.taps', 'student.teacher_taps', 'student.name', 'teacher.name',
          'teacher.kwargs', 'student.kwargs.width', 'teacher.kwargs.width', 'teacher.kwargs.x',
          'student.kwargs.momentum', 'student.kwargs.dtype', 'dtype', 'heads.kind']
CHANGES = st.sampled_from(['replace', 'replace', 'replace', 'remove', 'add'])


def group_of(config, path):
  *parents, key = path.split('.')
  for parent in parents:
    config = config[parent] if isinstance(config, ml_collections.ConfigDict) else None
  return config, key


def apply(config, change):
  """Changes the config, unless an earlier change took the place away."""
  path, kind, value, name = change
  group, key = group_of(config, path)
  if not isinstance(group, ml_collections.ConfigDict) or key not in group and kind == 'remove':
    return
  with group.unlocked(), group.ignore_type():
    if kind == 'remove':
      del group[key]
    else:
      group[key if kind == 'replace' else name] = value


def changed(config, changes):
  config = config.copy_and_resolve_references()
  for change in changes:
    with contextlib.suppress(Exception):  # ml_collections does not take every name and value.
      apply(config, change)
  return config


def outcome(call, *args):
  """'' where it passes, else the one line of the ConfigError; anything else is raised."""
  try:
    call(*args)
  except errors.ConfigError as error:
    message = str(error)
    assert message and '\n' not in message
    return message
  return ''


def build(config):
  checks.check(config)
  pipeline.check_devices(config)
  networks.build(config, SPEC)


def change_of(paths):
  return st.tuples(st.sampled_from(paths), CHANGES, ANYTHING, TEXTS)


@pytest.mark.slow
@times(60, 2000)
@given(st.lists(change_of(PATHS), min_size=1, max_size=4))
def test_a_changed_config_is_checked_without_a_traceback(changes):
  outcome(checks.check, changed(BASE, changes))


def of_method(name):
  """(name, changes of its options)."""
  options = [f'methods.{name}.{option}' for option in BASE.methods[name]]
  return st.tuples(st.just(name), st.lists(
      st.tuples(st.sampled_from(options), CHANGES, JSON, TEXTS), min_size=1, max_size=2))


@pytest.mark.slow
@times(30, 400)
@given(st.sampled_from(sorted(BASE.methods)).flatmap(of_method))
def test_changed_options_of_a_method_build_or_are_refused(method):
  name, changes = method
  config = changed(BASE, changes)
  config.student.methods = (name,)
  outcome(build, config)


@times(20, 400)
@given(st.lists(st.tuples(st.sampled_from(MODELS), st.just('replace'), JSON, TEXTS),
                min_size=1, max_size=2))
def test_changed_models_and_taps_build_or_are_refused(changes):
  config = changed(BASE, changes)
  outcome(build, config)


@times(50, 2000)
@given(st.sampled_from(PATHS + ['no.such', 'seed.x', 'methods[0]', 'data.mean[0]', '']), TEXTS)
def test_any_text_behind_a_flag_is_read_or_refused(path, text):
  command = ['kdih', f'--config={CONFIG}', '--workdir=w',
             f'--config.{path}={text}']
  outcome(lambda: checks.check(flags.read(command)[0]))


@times(50, 2000)
@given(st.lists(st.one_of(TEXTS, TEXTS.map('--config='.__add__), TEXTS.map('--workdir='.__add__),
                          TEXTS.map('--'.__add__), TEXTS.map('--config.seed='.__add__))))
def test_any_command_line_is_read_or_refused(arguments):
  outcome(flags.read, ['kdih', *arguments])


@times(50, 2000)
@given(st.one_of(TEXTS, st.lists(st.tuples(
    st.sampled_from(['steps', 'rate', 'flag', 'name', 'stpes', '']), TEXTS)).map(
        lambda pairs: ','.join('='.join(pair) for pair in pairs))))
def test_any_argument_of_a_config_is_read_or_refused(argument):
  defaults = dict(steps=6, rate=0.5, flag=False, name='x')

  def read():
    fields = arguments_lib.parse_arg(argument, **defaults)
    assert {name: type(value) for name, value in fields.items()} == {
        name: type(value) for name, value in defaults.items()}

  outcome(read)


@pytest.mark.parametrize(('path', 'value', 'expected'), [
    ('methods.dih_at.methods', ('dih_at', 'kd'), 'config.methods.dih_at: contains itself'),
    ('methods.dih_at.methods', 3, 'config.methods.dih_at.methods: is 3; it must be a tuple'),
    ('methods.takd.chain', 3,
     'config.methods.takd.chain: is 3; it must be a tuple, each value a name'),
    ('methods.takd.chain', (3,), 'config.methods.takd.chain: is 3; it must be a name'),
    ('methods.takd.chain', ('resent20',),
     "config.methods.takd: unknown 'resent20'; did you mean 'resnet20'?"),
    ('methods.crd.negatives', 10**400, 'config.methods.crd.negatives: is 1000'),
    ('methods.tofd.beta', None, 'config.methods.tofd.beta: is None; it must be a number'),
    ('methods.kd.kind', b'kd', "config.methods.kd.kind: is b'kd'; it must be a number, a string"),
    ('methods.ce', 3, 'config.methods.ce: is 3; it must be a group of fields'),
    ('data.mean', (10**400,), 'config.data.mean: is 1000'),
    ('teacher.kwargs', {'dtype': 'x'}, 'config.teacher.kwargs.dtype: is set by config.dtype')])
def test_what_once_ended_in_a_traceback(path, value, expected):
  config = changed(BASE, [(path, 'replace', value, '')])
  config.student.methods = (path.split('.')[1],) if path.startswith('methods') else ('ce',)
  assert outcome(build, config).startswith(expected)


@pytest.mark.parametrize('returned', ['None', '3', '{}', 'config.to_dict()',
                                      'ml_collections.FrozenConfigDict(config)'])
def test_a_config_file_that_returns_something_else(tmp_path, returned):
  path = tmp_path / 'mine.py'
  path.write_text('import ml_collections\n' + (CONFIG).read_text().replace(
      'return config', f'return {returned}'))
  message = outcome(flags.read, ['kdih', f'--config={path}', '--workdir=w'])
  assert message.startswith('--config: ')


def test_a_field_that_is_read_first_may_be_missing(tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text((CONFIG).read_text().replace(
      'return config', "with config.unlocked():\n    del config['deterministic']\n  return config"))
  assert main.main(['kdih', f'--config={path}', f'--workdir={tmp_path}/w']) == 2
  assert capsys.readouterr().err.startswith('kdih: config.deterministic: is missing in ')
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('schedule', ['piecewise', 'cosine'])
def test_milestones_behind_the_end_are_refused_where_they_are_used(schedule):
  config = read_config('unused', 'unused', f'--config.student.train.schedule={schedule}',
                       '--config.student.train.milestones=1000')
  with (pytest.raises(errors.ConfigError, match='config.student.train.milestones: 1000 is not')
        if schedule == 'piecewise' else contextlib.nullcontext()):
    checks.check(config)
