"""The command line: which value a field gets, and the message for a wrong one."""
import pytest
from hypothesis import given, strategies as st

from kdih import errors, methods
from kdih.config import flags
from kdih.config.fields import FIELDS
from kdih.config.values import Group
from kdih.sweep import __main__ as sweep
from tests.helpers.field_values import texts, valid
from tests.helpers.fuzzing import times
from tests.helpers.runs import CONFIG, ROOT

SHORT = sweep._SHORT


def read(*arguments, short=SHORT):
  return flags.read(['kdih', f'--config={CONFIG}', '--workdir=w', *arguments], short)[0]


def refused(*arguments) -> str:
  with pytest.raises(errors.ConfigError) as caught:
    read(*arguments)
  assert str(caught.value).isprintable()
  return str(caught.value)


def found(config, name: str):
  for part in name.split('.'):
    config = config[part]
  return config


@times(60, 1000)
@given(st.sampled_from(sorted(name for name in FIELDS
                              if not isinstance(FIELDS[name].kind, Group))), st.data())
def test_the_text_of_a_value_is_read_back_as_that_value(name, data):
  value = data.draw(valid(FIELDS[name].kind))
  for text in texts(value):
    assert found(read(f'--config.{name}={text}'), name) == value
    if not (text.startswith('--') or isinstance(value, bool)):
      assert found(read(f'-config.{name}', text), name) == value


@pytest.mark.parametrize('arguments, name, value', [
    ('--config.methods.dih.temperature=(5.0,4.0,3.0,2.0)', 'methods.dih.temperature',
     (5.0, 4.0, 3.0, 2.0)),
    ('--config.methods.dih.temperature=5,4,3', 'methods.dih.temperature', (5, 4, 3)),
    ('--config.methods.dih.temperature=4', 'methods.dih.temperature', 4.0),
    ('--config.methods.kd.learning_rate=0.01', 'methods.kd.learning_rate', 0.01),
    ('--config.methods.kd.learning_rate=1e-3', 'methods.kd.learning_rate', 1e-3),
    ('--config.methods.kd.scale=cohort', 'methods.kd.scale', 'cohort'),
    ("--config.methods.kd.scale='cohort'", 'methods.kd.scale', 'cohort'),
    ('--config.methods.kd.standardise=true', 'methods.kd.standardise', True),
    ('--noconfig.methods.kd_std.standardise', 'methods.kd_std.standardise', False),
    ('--config.methods.takd.chain=resnet20', 'methods.takd.chain', ('resnet20',)),
    ('--config.methods.takd.chain=resnet56,resnet20', 'methods.takd.chain',
     ('resnet56', 'resnet20')),
    ('--config.methods.mine.kind=kd', 'methods.mine.kind', 'kd'),
    ('--config.student.kwargs.width=8', 'student.kwargs.width', 8),
    ('--config.student.kwargs.name_of=8x', 'student.kwargs.name_of', '8x'),
    ('--config.teacher.kwargs.sizes=(1,2)', 'teacher.kwargs.sizes', (1, 2)),
    ('--config.teacher.kwargs.inner.depth=3', 'teacher.kwargs.inner.depth', 3),
    ('--config.student.methods=ce,kd', 'student.methods', ('ce', 'kd')),
    ('--config.student.methods=ce', 'student.methods', ('ce',)),
    ('--config.student.methods=[ce, kd]', 'student.methods', ('ce', 'kd')),
    ("--config.student.methods=('ce', 'kd')", 'student.methods', ('ce', 'kd')),
    ("--config.heads.taps='a,b',c", 'heads.taps', ('a,b', 'c')),
    ('--config.heads.taps=f(1,2),c', 'heads.taps', ('f(1,2)', 'c')),
    ("--config.heads.taps=(')',\"it's, \")", 'heads.taps', (')', "it's, ")),
    ('--config.heads.taps=', 'heads.taps', ()),
    ('--config.heads.taps=()', 'heads.taps', ()),
    ('--config.data.folder=a,b (c)', 'data.folder', 'a,b (c)'),
    ('--config.data.folder=', 'data.folder', ''),
    ('--config.data.folder=x=y', 'data.folder', 'x=y'),
    ('--config.data.train_split=train[:90%]', 'data.train_split', 'train[:90%]'),
    ('--config.data.mean=0.5', 'data.mean', (0.5,)),
    ('--config.data.mean=.5,1,1e-3', 'data.mean', (0.5, 1.0, 0.001)),
    ('--noconfig.deterministic', 'deterministic', False),
    ('--config.deterministic', 'deterministic', True),
    ('--config.deterministic=no', 'deterministic', False),
    (['--config.profile', '--config.seed=3'], 'profile', True),
    (['--config.seed', '7'], 'seed', 7),
    ('-config.seed=7', 'seed', 7),
    (['--config.seed=7', '--config.seed=8'], 'seed', 8),
    (['--config.data.order_seed', '-1'], 'data.order_seed', -1),
    (['--config.student.methods', 'ce,kd'], 'student.methods', ('ce', 'kd')),
    (['--seeds', '1'], 'sweep.seeds', (1,)),
    ('--seeds=30,50', 'sweep.seeds', (30, 50)),
    ('--methods=ce,kd', 'sweep.methods', ('ce', 'kd')),
    (['--students', 'a:b,c'], 'sweep.students', ('a:b', 'c')),
    ('--alphas=0.1,1', 'sweep.alphas', (0.1, 1.0)),
    ('--learning_rates=1e-2', 'sweep.learning_rates', (0.01,)),
    ('--together', 'sweep.together', True),
    ('--together=false', 'sweep.together', False),
    (['--dry_run', '--seeds=1'], 'dry_run', True),
    ('--accept=versions,data', 'accept', ('versions', 'data'))])
def test_a_value_arrives(arguments, name, value):
  several = [arguments] if isinstance(arguments, str) else arguments
  arrived = found(read(*several), name)
  assert arrived == value and type(arrived) is type(value)


def test_an_entry_of_ones_own_is_made_of_its_options():
  config = read('--config.methods.mine.kind=kd', '--config.methods.mine.alpha=0.5',
                '--config.methods.mine.temperature=2.0', '--config.methods.mine.scale=one',
                '--config.methods.mine.gain=1.0', '--config.methods.mine.standardise=false',
                '--config.student.methods=mine')
  assert config.methods.mine.to_dict() == dict(
      kind='kd', alpha=0.5, temperature=2.0, scale='one', gain=1.0, standardise=False)
  assert config.student.methods == ('mine',)


@pytest.mark.parametrize('text', ['true', 'False', '<script>', 'None', '', '1,'])
def test_an_option_that_is_a_number_is_made_no_other_one(text):
  """A ConfigDict would take True for 1.0."""
  with pytest.raises(errors.ConfigError, match=r'config\.methods\.kd\.alpha: is '):
    methods.check(read(f'--config.methods.kd.alpha={text}').methods.to_dict())


def test_what_is_not_set_stays():
  plain, config = read().to_dict(), read('--config.data.padding=3', '--seeds=1').to_dict()
  plain['data']['padding'], plain['sweep']['seeds'] = 3, (1,)
  assert config == plain


@pytest.mark.parametrize('argument, message', [
    ('--config.sead=3', "config.sead: there is no such field; did you mean 'seed'? "),
    ('--config.student.trian.length=3', "did you mean config.student.train.length or "
                                         'config.student.prepare.length? '),
    ('--config.teacher.kwarg.width=3', "did you mean 'teacher.kwargs'? "),
    ('--config.data.mean[0]=3', "did you mean 'mean'? kdih/config/README.md lists all"),
    ('--config.seed.x=3', 'config.seed.x: there is no such field; '),
    ('--config.=3', 'config.: there is no such field; '),
    ('--config.data=3', 'config.data: is a group of fields; set one of its fields by '
                        '--config.data.FIELD=VALUE'),
    ('--config.student.train=3', 'config.student.train: is a group of fields; '),
    ('--config.student.kwargs=3', 'config.student.kwargs: is a group of fields; set one of its '
                                  'fields by --config.student.kwargs.FIELD=VALUE'),
    ('--config.methods.kd=3', 'config.methods.kd: is a group of fields; '),
    ('--config.methods=kd', 'config.methods: is a group of fields; did you mean '
                            'config.student.methods or config.sweep.methods? set one of its '),
    ('--config.learning_rate=1', 'did you mean config.teacher.train.learning_rate or '),
    ('--config.student.learning_rate=1',
     'did you mean config.student.train.learning_rate or config.student.prepare.learning_rate? '),
    ('--config.student.train.learning_rat=1', "did you mean 'learning_rate'? "),
    ('--config.student.width=8',
     'set an argument of the model by --config.student.kwargs.width=VALUE; '),
    ('--config.methods.kd.alpha.x=3', 'config.methods.kd.alpha: is '),
    ('--config.seed', 'config.seed: has no value; write --config.seed=VALUE'),
    ('--config.seed=', "config.seed: is ''; it must be a whole number from 0 to 2^32 - 1"),
    ('--config.seed=3.0', "config.seed: is '3.0'; it must be a whole number"),
    ('--config.seed=\N{ARABIC-INDIC DIGIT THREE}', 'config.seed: is '),
    ('--config.data.mean=0.5,a', "config.data.mean: is 'a'; it must be a number from -10 to "),
    ('--config.data.mean=1_0', "config.data.mean: is '1_0'; it must be a number"),
    ('--config.deterministic=', "config.deterministic: is ''; it must be True or False"),
    ('--config.deterministic=maybe', "config.deterministic: is 'maybe'; it must be True or False"),
    ('--noconfig.seed', '--noconfig.seed: sets a field that is True or False to False, and '
                        'takes no value; write --config.seed=VALUE'),
    ('--noconfig.deterministic=true', '--noconfig.deterministic: sets a field that is True'),
    ('--seed=3', '--seed: there is no such flag; did you mean config.seed? set a field of '
                 'the config by --config.FIELD=VALUE'),
    ('--method=ce', "--method: there is no such flag; did you mean 'methods'? set a field of the "),
    ('--confg=x', "--confg: there is no such flag; did you mean 'config'? "),
    ('--seeds=', '--seeds: has no value; write --seeds=VALUE, or remove the flag'),
    ('--seeds', 'config.sweep.seeds: has no value; write --config.sweep.seeds=VALUE'),
    ('seed=3', "'seed=3' is not a flag; set a field by --config.FIELD=VALUE, with several "
               'values joined by commas')])
def test_a_wrong_argument_is_named_with_the_remedy(argument, message):
  assert message in refused(argument)


@pytest.mark.parametrize('arguments', [
    ('--config.seed', '--config.profile'), ('--config.methods.kd.standardise', '--seeds=1'),
    ('--seeds', '--methods=ce')])
def test_a_flag_is_no_value_of_another(arguments):
  assert 'has no value' in refused(*arguments)


def test_a_missing_config_file_is_compared_with_its_neighbours(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  (tmp_path / 'digits.py').write_text('')
  meant = f"; did you mean '{tmp_path}/digits.py'?"
  for name, hint in (('digist.py', meant), ('digits', meant), ('zzz.py', ''),
                     ('cifr100.py', "; did you mean 'configs/cifar100.py'?")):
    path = tmp_path / name
    with pytest.raises(errors.ConfigError) as caught:
      flags.read(['x', f'--config={path}', f'--workdir={tmp_path}/w'])
    assert str(caught.value).endswith(f"No such file or directory: '{path}'{hint}")


def test_without_short_flags_there_are_none():
  with pytest.raises(errors.ConfigError, match='--methods: there is no such flag; did you mean '
                     r'config\.student\.methods or'):
    read('--methods=ce', short={})
