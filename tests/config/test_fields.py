"""Every field and every option accepts the values of its kind, and refuses others in one line."""
import pytest
from hypothesis import given, strategies as st

from kdih import errors, methods
from kdih.config import checks, fields
from kdih.config.fields import FIELDS, TRAININGS
from kdih.data.spec import DataSpec
from kdih.phases import networks
from tests.helpers.field_values import broken, valid
from tests.helpers.fuzzing import times
from tests.helpers.runs import read_config

BASE = read_config('unused', 'unused')
ENTRIES = BASE.methods.to_dict()
SPEC = DataSpec('digits', (8, 8, 1), 10)
OPTIONS = [(entry, option, kind) for entry, options in ENTRIES.items()
           for option, kind in methods.option_kinds(options['kind']).items()]
FIRST = {options['kind']: entry for entry, options in reversed(ENTRIES.items())}


def put(config, values):
  """Sets fields, {name: value}, whatever their type."""
  for name, value in values.items():
    *groups, key = name.split('.')
    group = config
    for part in groups:
      group = group[part]
    with group.unlocked(), group.ignore_type():
      if key in group:
        del group[key]  # Else a bool in the place of a float becomes one.
      group[key] = value
  return config


def changed(values):
  return put(BASE.copy_and_resolve_references(), values)


@st.composite
def valid_values(draw):
  """A valid value for every field, which fit together."""
  found = {name: draw(valid(field.kind)) for name, field in FIELDS.items()}
  for group, least in (('student', 1), ('sweep', 0)):
    found[f'{group}.methods'] = tuple(draw(st.lists(
        st.sampled_from(sorted(ENTRIES)), min_size=least, max_size=3, unique=True)))
  for group in TRAININGS:
    length = found[f'{group}.length']
    found[f'{group}.milestones'] = tuple(
        position for position in found[f'{group}.milestones'] if position < length)
    if found[f'{group}.warmup'] >= length:
      found[f'{group}.warmup'] = 0.0
  return found


def refusal(check, *arguments) -> str:
  with pytest.raises(errors.ConfigError) as caught:
    check(*arguments)
  message = str(caught.value)
  assert message and message.isprintable()
  return message


@times(25, 1000)
@given(valid_values())
def test_any_valid_values_of_all_fields_pass(found):
  checks.check(changed(found))


@pytest.mark.parametrize('name', FIELDS)
@times(3, 60)
@given(st.data())
def test_a_broken_value_of_any_field_is_refused(name, data):
  """Whether the run would use it or not."""
  value = data.draw(broken(FIELDS[name].kind))
  message = refusal(checks.check, changed({name: value}))
  assert message.startswith(f'config.{name}: ') or message.startswith(f'config.{name}.')


@times(15, 500)
@given(valid_values(), st.sampled_from(sorted(FIELDS)), st.data())
def test_one_broken_value_among_others_is_named(found, name, data):
  value = data.draw(broken(FIELDS[name].kind))
  assert refusal(checks.check, changed({**found, name: value})).startswith(f'config.{name}')


@pytest.mark.parametrize('entry, option, kind', [
    pytest.param(entry, option, kind, id=f'{entry}.{option}',
                 marks=() if entry in FIRST.values() else pytest.mark.slow)
    for entry, option, kind in OPTIONS])
@times(2, 30)
@given(st.data())
def test_an_option_takes_what_its_kind_says_and_nothing_else(entry, option, kind, data):
  setting = f'config.methods.{entry}.{option}'
  if option != 'methods':  # These name entries.
    methods.check({entry: {**ENTRIES[entry], option: data.draw(valid(kind))},
                   **{name: options for name, options in ENTRIES.items() if name != entry}})
  value = data.draw(broken(kind))
  message = refusal(methods.check, {**ENTRIES, entry: {**ENTRIES[entry], option: value}})
  assert message.startswith(f'{setting}: ')


@times(30, 500)
@given(st.sampled_from(OPTIONS), st.booleans(), st.data())
def test_a_broken_option_is_refused_before_networks_are_built(place, used, data):
  """Of the method that the run uses, or of another."""
  entry, option, kind = place
  config = changed({f'methods.{entry}.{option}': data.draw(broken(kind))})
  config.student.methods = (entry,) if used else ('ce',) if entry != 'ce' else ('kd',)
  message = refusal(networks.build, config, SPEC)
  assert message.startswith(f'config.methods.{entry}.{option}: ')


@pytest.mark.parametrize('entry', ENTRIES)
@times(2, 30)
@given(st.data())
def test_a_learning_rate_of_an_entry_is_one(entry, data):
  def given_rate(rate):
    return {**ENTRIES, entry: {**ENTRIES[entry], 'learning_rate': rate}}

  methods.check(given_rate(data.draw(valid(methods.RATE))))
  assert refusal(methods.check, given_rate(data.draw(broken(methods.RATE)))).startswith(
      f'config.methods.{entry}.learning_rate: ')


THREE = '\N{ARABIC-INDIC DIGIT THREE}'
NAN = float('nan')


@pytest.mark.parametrize('name, value', [
    ('methods.kd.alpha', '<script>'), ('methods.kd.alpha', NAN), ('methods.kd.alpha', -1),
    ('methods.kd.alpha', 1e308), ('methods.kd.alpha', 5e-324), ('methods.kd.alpha', True),
    ('methods.kd.temperature', NAN), ('methods.kd.temperature', 5e-324),
    ('methods.kd.temperature', 1e308), ('methods.kd.temperature', 0),
    ('methods.dih.temperature', (5.0, NAN)), ('methods.dih.alpha', ()),
    ('methods.dih.weights', '<script>'), ('methods.cc.width', THREE), ('methods.cc.width', 1e3),
    ('methods.at.weight', NAN), ('methods.at.weight', -1), ('methods.at.weight', 1e308),
    ('methods.at.weight', 5e-324), ('methods.sp.cross_entropy', 5e-324),
    ('methods.ft.rate', NAN), ('methods.dkd.beta', -1), ('methods.dkd.warmup_epochs', 1e308),
    ('methods.takd.chain', 'resnet20'), ('methods.dih_at.weights', (1.0, NAN)),
    ('methods.dih_at.methods', ('dih', '<script>')), ('methods.kd.learning_rate', 1e308),
    ('methods.kd.learning_rate', 5e-324), ('methods.kd.learning_rate', -1),
    ('methods.kd.learning_rate', THREE), ('methods.at.kind', '<script>'),
    ('methods.at.weigth', 1.0), ('data.mean', (1e308,)), ('data.mean', (NAN,)),
    ('data.std', (1e-300,)), ('data.std', (0.0,)), ('data.std', (-1.0,)),
    ('heads.taps', ('stage1', 'stage1')), ('student.taps', ('stage1', 'stage1')),
    ('student.train.learning_rate', 1e308), ('student.prepare.learning_rate', 5e-324),
    ('student.prepare.weight_decay', 5e-324), ('heads.train.momentum', 1 - 1e-9),
    ('data.validation_fraction', 5e-324), ('sweep.alphas', (NAN,)), ('sweep.seeds', (1, 1)),
    ('sweep.seeds', ()), ('compute.cache', f'views:{THREE}'), ('teacher.kwargs', {'x': NAN}),
    ('seed', THREE), ('seed', 2**32), ('phases', ()), ('max_rewinds', -1)])
def test_nonsense_is_refused_though_the_run_uses_ce_alone(name, value):
  config = changed({'student.methods': ('ce',)})

  def build():
    checks.check(put(config, {name: value}))
    networks.build(config, SPEC)

  assert refusal(build).startswith(f'config.{name}')


def test_the_message_says_what_a_value_must_be():
  wrong = {
      'seed': (2**32, 'is 4294967296; it must be a whole number from 0 to 2^32 - 1'),
      'data.std': ((0.0,), 'is 0.0; it must be a number from 1e-6 to 10'),
      'data.validation_fraction': (1, 'is 1; it must be a number of at least 0 and below 1'),
      'student.train.length': (0.0, 'is 0.0; it must be a number above 0 and at most 1e7'),
      'student.train.weight_decay': (1e-40, 'is 1e-40, which is 0 in float32; set it to 0 or '
                                            'to a larger number'),
      'data.flip': ('yes', "is 'yes'; it must be True or False"),
      'data.mean': (0.5, 'is 0.5; it must be a tuple, each value a number from -10 to 10; '
                          'write a single value as (VALUE,)'),
      'dtype': ('float23', "unknown 'float23'; did you mean 'float32'? choose from: bfloat16, "
                           'float32'),
      'compute.cache': ('views', "is 'views'; it must be 'none', 'all_views' or 'views:N', such "
                                 "as 'views:8'"),
      'phases': ((), 'is (); it must hold 1 or more values'),
      'sweep.seeds': ((1, 2, 1), 'is (1, 2, 1); it must hold every value only once'),
      'teacher.kwargs': ({'x': 1e39}, None)}
  for name, (value, message) in wrong.items():
    expected = f'config.{name}: {message}' if message else (
        'config.teacher.kwargs.x: is 1e+39; it must be finite in float32')
    assert refusal(checks.check, changed({name: value})) == expected


def test_a_recipe_leaves_nothing_undeclared():
  """What a config holds beside methods is what the fields declare, with the same values."""
  assert dict(fields.flat({key: value for key, value in fields.base().to_dict().items()
                           if key != 'methods'})) == {
      name: field.default for name, field in FIELDS.items() if field.default != {}}
