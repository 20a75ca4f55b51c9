"""Models as users write them: what is carried, and the one line that refuses the others."""
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.cohort import head_modules
from kdih.data.spec import DataSpec
from kdih.models import model_checks, registry, taps
from kdih.phases import computation, networks
from tests.helpers import odd_nets
from tests.helpers.odd_nets import Kept, Odd
from tests.helpers.runs import read_config, tiny_command
from tests.helpers.slow import slow

SPEC = DataSpec('made', (8, 8, 1), 10)
SHAPE, CLASSES = SPEC.image_shape, SPEC.num_classes
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(8, *SHAPE)), jnp.float32)
TEACHER, STUDENT = 'config.teacher.name', 'config.student.name'


def built(role, name, *overrides, method='ce', **kwargs):
  config = read_config('unused', 'unused', f'--config.student.methods={method}',
                       *(f'--config.{override}' for override in overrides))
  with config.unlocked():
    config[role].name = name if ':' in name else f'tests.helpers.odd_nets:{name}'
    config[role].kwargs = kwargs
  return networks.build(config, SPEC)


def refusal(*arguments, **kwargs) -> str:
  with pytest.raises(errors.ConfigError) as raised:
    built(*arguments, **kwargs)
  line = str(raised.value)
  assert '\n' not in line
  return line


def odd(role, way, only='both', *overrides, **kwargs):
  return built(role, 'Odd', *overrides, odd=way, only=only, **kwargs)


@pytest.mark.parametrize('way', [
    'returns_tuple', 'returns_dict', 'half', 'keeps_count', 'spectral_norm', 'sows_scalar',
    *(slow(way) for way in (
        'returns_list', 'returns_named_tuple', 'returns_struct', 'returns_no_tree', 'bfloat16',
        'sows_a_loss', 'partitioned', 'sows_number', 'sows_text', 'sows_no_batch',
        'sows_per_image', 'sows_dict', 'sows_key', 'sows_none', 'sows_complex',
        'sows_scalar_embedding', 'sows_text_preactivation', 'prints', 'is_remat'))])
def test_it_serves_as_teacher_and_as_student(way):
  for role in ('teacher', 'student'):
    networks_ = odd(role, way)
    assert tuple(networks_.taps if role == 'teacher' else networks_.student_taps) == (
        'stage1', 'stage2')
    computation.identify(networks_)


@pytest.mark.parametrize('way', [
    'returns_tuple', 'returns_dict', 'returns_struct', 'draws_noise', 'draws_unnamed',
    'draws_strangely_named'])
def test_it_serves_where_it_is_so_in_training_mode_alone(way):
  odd('teacher', way, 'training')
  odd('student', way, 'training', method='dml')  # Its peer is one like it.


@pytest.mark.parametrize('name', ['Kept', 'Scanned', 'KeywordOnly', 'SetUp', 'Unhashable'])
def test_these_serve_in_every_role(name):
  built('teacher', name)
  built('student', name, method='dml')
  path = f'tests.helpers.odd_nets:{name}'
  built('student', name, f'methods.takd.chain={path}', method='takd')


@pytest.mark.parametrize(('way', 'words'), [
    ('returns_empty', 'it returns nothing; return the logits'),
    ('returns_other_dict', "keys ['aux', 'predictions']; put the logits under the key 'logits'"),
    ('returns_nested', 'gives a tuple for 13 of the 8x8x1 images; logits of shape (13, 10)'),
    ('returns_text', 'gives a str for'), ('returns_nothing', 'gives a NoneType for'),
    ('returns_number', 'gives a float for'), ('wider', 'gives an array of shape (13, 20)'),
    ('map', 'gives an array of shape (13, 1, 10)'), ('scalar', 'gives an array of shape ()'),
    ('whole', 'gives logits of type int32'), ('complex', 'gives logits of type complex64'),
    ('draws_noise', "draws random numbers ('noise') in evaluation mode; draw them only if"),
    ('draws_unnamed', "draws random numbers ('params') in evaluation mode"),
    ('changes_in_evaluation', 'changes a variable in evaluation mode; change it only if'),
    ('keeps_input', "has a collection 'input', which"),
    ('keeps_folded', "has a collection 'folded', which"),
    ('keeps_memory', "has a collection 'memory', which"),
    ('keeps_key', "['stats']['kept'] is key<fry>[]; keep only arrays"),
    ('keeps_text', "['stats']['kept'], which is not a valid JAX type"),
    ('sows_into_intermediates_by_variable', 'Tried to access "mine"'),
    ('has_params_layer', 'extra params layer'), ('raises', "KeyError: 'gone'"),
    ('exits', 'sys.exit(7)'), ('looks', 'boolean conversion'),
    ('means_over_devices', 'unbound axis name'), ('cuts_in_eights', 'cannot reshape')])
def test_it_is_refused_whatever_its_role(way, words):
  for role in ('teacher', 'student'):
    line = refusal(role, 'Odd', odd=way)
    assert line.startswith(f'config.{role}.name: ')
    assert words in line


@pytest.mark.parametrize(('way', 'only', 'words'), [
    ('wider', 'training', 'shape (8, 20) for 8 of the 8x8x1 images in training mode'),
    ('returns_other_dict', 'training', "put the logits under the key 'logits'"),
    ('returns_nested', 'training', 'gives a tuple for'), ('whole', 'training', 'type int32'),
    ('raises', 'training', "KeyError: 'gone'"), ('exits', 'training', 'sys.exit(7)'),
    ('makes_parameters', 'training', 'makes variables in training mode that it lacks'),
    ('keeps_in_training', 'both', 'makes variables in training mode that it lacks'),
    ('keeps_other_dtype', 'both',
     "['stats']['kept'] is float32[10] at first and bfloat16[10] after a step"),
    ('keeps_other_shape', 'both', 'is float32[10] at first and float32[2,2,4] after a step'),
    ('keeps_batch', 'both', 'is float32[1,10] at first and float32[8,10] after a step'),
    ('keeps_more', 'both', "['stats']['two'] is not there at first and float32[] after"),
    ('keeps_tuple_and_array', 'both', "['stats']['sown'][1] is not there at first"),
    ('keeps_whole', 'both', 'is int32[] and depends on images or random numbers'),
    ('loops', 'both', 'Reverse-mode differentiation does not work'),
    ('calls_back', 'both', 'callbacks do not support JVP'),
    ('has_whole_parameter', 'both', 'but got int32')])
def test_it_is_refused_where_it_is_to_be_trained(way, only, words):
  for role in ('teacher', 'student'):
    line = refusal(role, 'Odd', odd=way, only=only)
    assert line.startswith(f'config.{role}.name: ')
    assert words in line
  path = 'tests.helpers.odd_nets:Odd'
  odd('teacher', way, only, 'teacher.variables=/a/teacher', 'phases=teacher,heads')
  assert refusal('teacher', path, 'phases=student', odd='raises').startswith(TEACHER)
  odd('student', way, only, 'phases=teacher')


def test_phases_that_are_not_run_ask_nothing_of_a_model():
  odd('teacher', 'raises', 'training', 'phases=heads')
  odd('student', 'raises', 'training', 'phases=teacher,heads')
  assert refusal('teacher', 'Odd', odd='raises', only='training').startswith(TEACHER)


@pytest.mark.parametrize('method', ['takd', 'dml'])
def test_assistants_and_peers_are_checked_as_they_are_trained(method, monkeypatch):
  field = {'takd': 'chain', 'dml': 'peers'}[method]
  class Wider(Odd):
    odd: str = 'wider'
    only: str = 'training'

  monkeypatch.setattr(odd_nets, 'Wider', Wider, raising=False)
  line = refusal('student', 'Kept', f'methods.{method}.{field}=tests.helpers.odd_nets:Wider',
                 method=method)
  assert line.startswith(f'config.methods.{method}: ')
  assert 'shape (8, 20) for 8 of the 8x8x1 images in training mode' in line


@pytest.mark.parametrize(('name', 'words'), [
    ('Empty', 'has no parameters'), ('NoTrain', "unexpected keyword argument 'train'"),
    ('WantsMore', "required positional argument: 'mask'"), ('LacksField', "argument: 'depth'"),
    ('Refuses', 'cannot be made: sys.exit(7)'), ('function', 'not a flax.linen.Module class'),
    ('Plain', 'not a flax.linen.Module class')])
def test_other_modules_are_refused(name, words):
  line = refusal('student', name)
  assert line.startswith(f'{STUDENT}: ')
  assert words in line


@pytest.mark.parametrize(('way', 'what'), [
    ('sows_third', "the tap 'stage3' is of shape (2, 2, 4)"),
    ('sows_whole', "the tap 'whole' is of shape (2, 2, 1)")])
def test_taps_of_a_student_are_there_when_it_learns(way, what):
  line = refusal('student', 'Odd', odd=way, only='evaluation')
  assert line.startswith(f'config.student.taps: {what} for an image in evaluation mode and not '
                         'there in training mode; ')
  odd('student', way, 'evaluation', 'student.taps=stage1,stage2')
  odd('teacher', way, 'evaluation')


def test_a_named_tap_that_is_no_array_is_refused():
  line = refusal('teacher', 'Odd', 'heads.taps=scalar', odd='sows_scalar')
  assert line.startswith("config.heads.taps: 'scalar' is no array with numbers for each image; ")


def test_a_teacher_must_compute_in_the_type_that_is_asked_for(monkeypatch):
  class Strict(Odd):
    dtype: object = jnp.float32

    def strict(self, x, logits, train):
      assert self.dtype == jnp.float32, 'float32 alone'
      return logits

  monkeypatch.setattr(odd_nets, 'Strict', Strict, raising=False)
  line = refusal('teacher', 'Strict', 'compute.teacher_dtype=bfloat16', odd='strict')
  assert line == ('config.compute.teacher_dtype: Strict cannot compute in bfloat16: '
                  'float32 alone')


def test_equal_models_are_traced_once_in_each_mode(monkeypatch):
  modes = []

  class Counted(Odd):
    def counted(self, x, logits, train):
      modes.append('init' if self.is_initializing() else 'train' if train else 'eval')
      return logits

  monkeypatch.setattr(odd_nets, 'Counted', Counted, raising=False)
  built('teacher', 'Counted', odd='counted')
  built('teacher', 'Counted', odd='counted')
  assert sorted(modes) == ['eval', 'init', 'train']


@pytest.mark.parametrize('tap', ['final', 'mean', 'count', 'params', '', '.', '..', 'a\nb'])
def test_names_that_no_head_can_have_are_named(tap):
  with pytest.raises(errors.ConfigError) as raised:
    head_modules.check_names(('stage1', tap), 'config.heads.taps')
  line = str(raised.value)
  assert line.startswith(f'config.heads.taps: the tap {tap!r} ')
  assert line.endswith('; sow it under another name than the reserved count, final, mean, params, '
                       'or leave it out of the taps to use')
  assert '\n' not in line


def test_names_that_would_share_parameters_are_named():
  head_modules.check_names(('a/b', 'a.c', 'é', 'a b', 'loss'), 'config.heads.taps')
  with pytest.raises(errors.ConfigError, match="tap 'a.b' would share the parameters of 'a/b'; "):
    head_modules.check_names(('a/b', 'a.b'), 'config.heads.taps')


def test_a_reserved_tap_is_refused_where_it_would_carry_a_head(monkeypatch):
  def sows_final(self, x, logits, train):
    self.sow('intermediates', 'final', x)
    return logits

  monkeypatch.setattr(Odd, 'sows_final', sows_final, raising=False)
  assert refusal('teacher', 'Odd', odd='sows_final').startswith(
      "config.heads.taps: the tap 'final' is the name of the teacher's own classifier; ")
  odd('teacher', 'sows_final', 'both', 'heads.taps=stage1,stage2')
  odd('student', 'sows_final')


@pytest.mark.slow
def test_what_a_model_keeps_changes_in_training_mode_alone():
  model = Kept(CLASSES)
  variables = taps.initial(model, jax.random.key(0), IMAGES[:1])
  assert set(variables) == {'params', 'ema'}
  _, changed = taps.observe(model, variables, IMAGES, (), train=True, key=jax.random.key(1))
  assert changed['ema']['count'] == 1
  assert np.all(np.asarray(changed['ema']['mean']) > 0)
  assert taps.observe(model, variables, IMAGES, ())[1] == {}


def test_each_stream_has_a_key_of_its_own_and_dropout_the_one_that_is_given():
  key, seen = jax.random.key(3), {}

  def apply(rngs):
    for name in ('noise', 'dropout', 'droppath'):
      if name not in rngs:
        raise flax.errors.InvalidRngError(f'Net needs PRNG for "{name}"')
    seen.update(rngs)
    return 'result'

  assert taps.with_streams(apply, key) == 'result'
  numbers = {name: jax.random.key_data(found).tolist() for name, found in seen.items()}
  assert numbers['dropout'] == jax.random.key_data(key).tolist()
  assert len(set(map(tuple, numbers.values()))) == 3
  assert taps.with_streams(lambda rngs: rngs, key) == {'dropout': key}


def test_streams_draw_others_in_every_step_and_the_same_from_the_same_key():
  model = Odd(CLASSES, 'draws_noise', 'training')
  variables = taps.initial(model, jax.random.key(0), IMAGES[:1])

  def logits(seed):
    key = jax.random.key(seed)
    return taps.observe(model, variables, IMAGES, (), train=True, key=key)[0].logits

  np.testing.assert_array_equal(logits(1), logits(1))
  assert not np.array_equal(logits(1), logits(2))


def test_layers_that_are_scanned_draw_each_their_own():
  model = odd_nets.Scanned(CLASSES)
  model_checks.check_evaluation(model, SHAPE, CLASSES, STUDENT)
  model_checks.check_training(model, SHAPE, CLASSES, 4, STUDENT)


@pytest.mark.parametrize(('content', 'words'), [
    ('def f(:', 'SyntaxError: invalid syntax'), ('raise RuntimeError("no\\nweights")',
                                                 'RuntimeError: no'),
    ('import sys; sys.exit(7)', 'sys.exit(7)'), ('import no_such_thing', 'is it on PYTHONPATH?'),
    ('from os import no_such_thing', 'ImportError: cannot import name'),
    ('from . import nets', 'ImportError: attempted relative import'),
    ('class E(BaseException): pass\nraise E("mine")', 'E: mine'), ('1 / 0', 'ZeroDivisionError'),
    ('def __getattr__(name): raise OSError("gone")', 'OSError: gone')])
def test_a_file_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, content, words):
  name = f'own_{abs(hash(content))}'
  (tmp_path / f'{name}.py').write_text(content)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(errors.ConfigError) as raised:
    registry.create(f'{name}:Net', CLASSES, setting=TEACHER)
  line = str(raised.value)
  assert line.startswith(f"{TEACHER}: cannot import '{name}' (")
  assert words in line
  assert '\n' not in line


def test_an_interruption_while_a_file_is_imported_is_one(tmp_path, monkeypatch):
  (tmp_path / 'own_interrupted.py').write_text('raise KeyboardInterrupt')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    registry.create('own_interrupted:Net', CLASSES, setting=TEACHER)


def test_a_file_that_leaves_ends_the_command_with_a_line(tmp_path, monkeypatch, capsys, digits_dir):
  (tmp_path / 'own_leaves.py').write_text('import sys\nsys.exit(7)\n')
  monkeypatch.syspath_prepend(tmp_path)
  command = tiny_command(tmp_path / 'w', digits_dir, '--config.student.name=own_leaves:Net')
  assert main.main(command) == 2
  assert capsys.readouterr().err.splitlines()[-1].startswith(
      "kdih: config.student.name: cannot import 'own_leaves' (SystemExit: sys.exit(7)); fix")
  assert not (tmp_path / 'w').exists()
