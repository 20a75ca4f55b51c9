"""A teacher that exists is taken for what it is: its classes, its data, its normalisation."""
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.cohort.members import make_teach
from kdih.data.spec import DataSpec
from kdih.models import taps
from kdih.phases import cache_plan, exported_variables, networks, pipeline
from kdih.phases.heads import features_at_taps, load_heads, run_heads
from kdih.phases.student import run_student
from kdih.phases.teacher import load_teacher, predict_as, run_teacher, teacher_task
from kdih.report import explore
from kdih.runtime import digests
from kdih.runtime.workdir import Workdir
from kdih.training import orbax_files
from tests.helpers.runs import exported, read_config, tiny_command
from tests.helpers.started import assert_bit_identical

pytestmark = pytest.mark.slow

# The teacher was trained with a mean and a std of 0.5.
OTHER = ('data.mean=(0.3,)', 'data.std=(0.2,)')
CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def prepared(workdir, digits_dir, *overrides, teacher=None):
  """The run, open but not begun, of a teacher that exists if one is named."""
  overrides = [*overrides, *([f'teacher.variables={teacher}'] if teacher else [])]
  experiment = pipeline.prepare_run(
      read_config(workdir, digits_dir, *(f'--config.{item}' for item in overrides)), workdir)
  experiment.open()
  return experiment


def copied(finished, folder, change=lambda meta: None, phase='teacher'):
  """A copy of exported variables, with another description."""
  path = finished / phase / 'variables'
  meta = orbax_files.read_meta(path)
  change(meta)
  exported_variables.save(folder, orbax_files.restore(path), meta)
  return folder


def described(folder):
  return orbax_files.read_meta(folder)


def refused(call, *args):
  with pytest.raises(errors.ConfigError) as raised:
    call(*args)
  assert '\n' not in str(raised.value)
  return str(raised.value)


# Normalisation.


@pytest.fixture(scope='module')
def elsewhere(finished, digits_dir, tmp_path_factory):
  """A run of teacher and heads with another normalisation than the teacher's."""
  experiment = prepared(tmp_path_factory.mktemp('elsewhere'), digits_dir, *OTHER,
                        teacher=finished / 'teacher' / 'variables')
  run_teacher(experiment)
  run_heads(experiment)
  return experiment


def test_a_teacher_with_its_own_normalisation_says_the_same_of_the_same_pixels(
    finished, digits_dir, elsewhere):
  there = prepared(finished, digits_dir)
  logits = {}
  for experiment in (there, elsewhere):
    task = teacher_task(experiment.networks.teacher, experiment.data.preprocess)
    logits[experiment], labels = experiment.predict(task, load_teacher(experiment)[0], 'test')
  np.testing.assert_allclose(logits[elsewhere]['teacher'], logits[there]['teacher'], atol=1e-5)
  results = [experiment.workdir.result('teacher') for experiment in (there, elsewhere)]
  for split in ('val', 'test_best_val'):
    found, expected = (result[split] for result in results[::-1])
    assert found['top1'] == expected['top1']
    assert found['loss'] == pytest.approx(expected['loss'], abs=1e-5)
  assert results[0]['fingerprint'] == results[1]['fingerprint']


def test_without_it_the_teacher_would_say_something_else(elsewhere):
  """Else the tests here would prove nothing."""
  variables, _ = load_teacher(elsewhere)
  predict = predict_as('teacher', elsewhere.networks.teacher)
  images = jnp.linspace(-1.5, 3.5, 3 * 64).reshape(3, 8, 8, 1)
  with_it, without = (predict(tree, None, images)['teacher']
                      for tree in (variables, taps.without_input(variables)))
  assert np.abs(with_it - without).max() > 1e-2
  np.testing.assert_allclose(variables[taps.INPUT]['scale'], 0.2 / 0.5)
  np.testing.assert_allclose(variables[taps.INPUT]['shift'], (0.3 - 0.5) / 0.5)


def test_heads_learn_on_the_features_that_the_teacher_always_had(finished, elsewhere):
  there = exported(finished, 'heads')
  for name, array in exported(elsewhere.workdir.path, 'heads').items():
    np.testing.assert_allclose(array, there[name], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize('settings', [
    (), ('compute.fold_batch_norm=false',), ('compute.teacher_dtype=bfloat16',)])
def test_it_teaches_as_where_it_was_trained(finished, digits_dir, tmp_path, settings):
  """In a step, from a cache too, with what the config makes of a frozen teacher."""
  pixels = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
  signals, tables = [], []
  for number, normalisation in enumerate(((), OTHER)):
    experiment = prepared(tmp_path / str(number), digits_dir, *settings, *normalisation,
                          teacher=finished / 'teacher' / 'variables')
    run_teacher(experiment)
    built, data = experiment.networks, experiment.config.data
    variables, _ = load_teacher(experiment)
    module, variables = networks.prepare_teacher(
        experiment.config, built, built.teacher, variables, tuple(built.taps))
    assert (taps.INPUT in variables) == bool(normalisation)
    images = (pixels - data.mean[0]) / data.std[0]
    frozen = {'teacher': variables}
    teach = make_teach('teacher', module, tuple(built.taps), built.heads, ())
    of_taps = features_at_taps(built, module)({'backbone': variables}, images)
    signals.append((teach(frozen, images), of_taps,
                 cache_plan.summaries(built, ['kd'], module)(frozen, images)))
    assert list(of_taps.features) == list(built.taps)
    tables.append(digests.of(frozen))
  tolerance = 0.05 if 'compute.teacher_dtype=bfloat16' in settings else 1e-5
  for there, here in zip(*map(jax.tree.leaves, signals), strict=True):
    np.testing.assert_allclose(here, there, atol=tolerance)
  assert tables[0] != tables[1]  # Their caches must not be confused.


def test_it_is_exported_as_it_was_and_what_stands_on_it_says_its_own(finished, elsewhere, tmp_path,
                                                                     digits_dir, capsys):
  path = elsewhere.workdir.path
  assert exported(path, 'teacher').keys() == exported(finished, 'teacher').keys()
  data = {phase: described(path / phase / 'variables')['data'] for phase in ('teacher', 'heads')}
  assert (data['teacher']['mean'], data['teacher']['std']) == ([0.5], [0.5])
  assert (data['heads']['mean'], data['heads']['std']) == ([0.3], [0.2])
  again = prepared(tmp_path / 'again', digits_dir, teacher=path / 'teacher' / 'variables')
  capsys.readouterr()
  run_teacher(again)
  assert 'normalisation' not in capsys.readouterr().err
  assert taps.INPUT not in load_teacher(again)[0]
  once_more = prepared(tmp_path / 'more', digits_dir, *OTHER,
                       teacher=tmp_path / 'again' / 'teacher' / 'variables')
  run_teacher(once_more)
  assert ('teacher: keeps the normalisation that it was trained with, mean (0.5), std (0.5)\n'
          in capsys.readouterr().err)


def test_one_number_and_the_same_for_every_channel_are_the_same_normalisation(finished, tmp_path):
  def load(**data):
    config = read_config('unused', 'unused')
    config.data.update(**data)
    built = networks.build(config, DataSpec('made', (8, 8, 3), 10))
    path = tmp_path / 'variables'
    variables = networks.initialise(built.teacher, jax.random.key(0), (8, 8, 3))
    exported_variables.save(path, variables, {
        'model': exported_variables.describe_model(config, 'teacher', 10),
        'data': {'mean': [0.5], 'std': [0.25]}})
    return exported_variables.load_teacher(path, config, built)[0].get(taps.INPUT)

  assert load(mean=(0.5, 0.5, 0.5), std=(0.25,)) is None
  own = load(mean=(0.5, 0.25, 0.5), std=(0.25, 0.25, 0.5))
  np.testing.assert_allclose(own['scale'], [1, 1, 2])
  np.testing.assert_allclose(own['shift'], [0, -1, 0])


def test_students_explorer_and_report_work_with_its_normalisation(
    finished, elsewhere, digits_dir, tmp_path):
  path = tmp_path / 'w'
  shutil.copytree(elsewhere.workdir.path, path)
  results = main.run(read_config(
      path, digits_dir, *(f'--config.{item}' for item in OTHER),
      f'--config.teacher.variables={finished / "teacher" / "variables"}'), path)
  assert results['compression']['teacher']['parameters'] == results['teacher']['parameters']
  assert described(path / 'student/dih/variables')['data']['mean'] == [0.3]
  found, expected = (explore.load(folder).logits for folder in (path, finished))
  np.testing.assert_allclose(found['final'], expected['final'], atol=1e-5)


def test_variables_are_found_below_the_home_folder(finished, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(finished.parent))
  path = f'~/{finished.name}/teacher/variables'
  assert exported_variables.describe(path) == exported_variables.describe(
      finished / 'teacher' / 'variables')
  _, variables, _ = exported_variables.load_model(path, model='tests.helpers.tiny_nets:TinyNet')
  assert variables['params']


@pytest.mark.parametrize('data', [
    {}, {'mean': [0.5]}, {'mean': [0.5], 'std': [0.0]}, {'mean': ['a'], 'std': [1.0]},
    {'mean': [0.5, 0.5], 'std': [1.0]}, {'mean': None, 'std': [1.0]}, None, [1]])
def test_a_description_without_a_normalisation_is_refused(finished, digits_dir, tmp_path, data):
  path = copied(finished, tmp_path / 'v', lambda meta: meta.update(data=data))
  line = refused(prepared, tmp_path / 'w', digits_dir, f'teacher.variables={path}')
  assert line.startswith(f"config.teacher.variables: the variables at '{path}' are damaged, or ")
  assert 'the mean and std of their images' in line or ' - at `$.data' in line


# Classes.


def named(digits_dir, path, classes):
  """Config and networks for a teacher that exists, where the data set has such classes; a workdir
  without one."""
  config = read_config('unused', digits_dir, f'--config.teacher.variables={path}')
  built = networks.build(config, DataSpec('digits', (8, 8, 1), 10, classes))
  return config, built, Workdir(path.parent / 'none')


def with_classes(classes):
  return lambda meta: meta['data'].update(classes=classes and list(classes))


def test_other_classes_or_another_order_are_refused(finished, digits_dir, tmp_path):
  path = copied(finished, tmp_path / 'v', with_classes(CLASSES))
  pipeline.check_existing(*named(digits_dir, path, CLASSES))
  swapped = (*CLASSES[:2], 'three', 'two', *CLASSES[4:])
  line = refused(pipeline.check_existing, *named(digits_dir, path, swapped))
  assert line.startswith(
      f"config.teacher.variables: the teacher at '{path}' was trained with other classes")
  assert "its class 2 is 'two', here it is 'three'; " in line
  line = refused(pipeline.check_existing, *named(digits_dir, path, (*CLASSES[:9], 'ten')))
  assert "its class 9 is 'nine', here it is 'ten'; " in line


@pytest.mark.parametrize('stored', ['abc', [1], list('abc'), {'a': 1}])
def test_classes_that_cannot_be_are_refused(finished, digits_dir, tmp_path, stored):
  path = copied(finished, tmp_path / 'v', lambda meta: meta['data'].update(classes=stored))
  line = refused(pipeline.check_existing, *named(digits_dir, path, CLASSES))
  assert line.startswith(f"config.teacher.variables: the variables at '{path}' are damaged, or ")
  assert 'another number of classes' in line or ' - at `$.data.classes' in line


def test_where_names_are_unknown_the_teacher_is_taken_with_a_line(
    finished, digits_dir, tmp_path, capsys):
  assert described(finished / 'teacher' / 'variables')['data']['classes'] is None  # Of digits.

  def taken(classes, classes_here):
    folder = tmp_path / f'{classes is None}{classes_here is None}'
    path = copied(finished, folder / 'v', lambda meta: meta['data'].update(
        classes=classes and list(classes), content=None))
    experiment = prepared(folder / 'w', digits_dir, teacher=path)
    experiment.networks = dataclasses.replace(
        experiment.networks, spec=DataSpec('digits', (8, 8, 1), 10, classes_here or ()))
    run_teacher(experiment)
    stored = described(folder / 'w' / 'teacher' / 'variables')['data']['classes']
    assert stored == (classes_here and list(classes_here))
    return 'teacher: the class names of the teacher or of the' in capsys.readouterr().err

  assert taken(None, CLASSES) and taken(CLASSES, None)
  assert not taken(CLASSES, CLASSES)


def test_where_names_are_unknown_the_same_images_raise_no_doubt(
    finished, digits_dir, tmp_path, capsys):
  run_teacher(prepared(tmp_path / 'w', digits_dir, teacher=finished / 'teacher' / 'variables'))
  assert 'class names' not in capsys.readouterr().err


# Other data.


@pytest.mark.parametrize('content, here, is_other', [
    ({'train': 'a'}, {'train': 'b'}, True), ({'train': 'a'}, {'train': 'a'}, False),
    ({'train': 'a'}, None, False), (None, {'train': 'a'}, False)])
def test_a_teacher_is_measured_anew_where_images_were_added(
    finished, digits_dir, tmp_path, capsys, content, here, is_other):
  def change(meta):
    meta['data']['content'] = content
    meta['test_best_val']['top1'] += 0.25

  experiment = prepared(tmp_path / 'w', digits_dir,
                        teacher=copied(finished, tmp_path / 'v', change))
  experiment.identity = here and dataclasses.replace(experiment.identity, data=here)
  if is_other:
    measured = run_teacher(experiment)['test_best_val']['top1']
    assert (f'teacher: test top-1 (best val) {measured:.4f} here, {measured + 0.25:.4f} where '
            'it was exported, on other data') in capsys.readouterr().err
    assert described(tmp_path / 'w/teacher/variables')['data']['content'] == here
  else:
    assert 'its files or the images have changed' in refused(run_teacher, experiment)


@pytest.mark.parametrize('measured', [None, {}, 'abc', {'top1': 'x'}, 3])
def test_a_stored_accuracy_that_is_none_is_not_compared(finished, digits_dir, tmp_path, measured):
  def change(meta):
    meta['test_best_val'] = meta['val'] = measured
  run_teacher(prepared(tmp_path / 'w', digits_dir,
                       teacher=copied(finished, tmp_path / 'v', change)))


# What a phase left is what a later one finds.


@pytest.fixture
def copy(finished, tmp_path, digits_dir):
  """A copy of the finished run without its student of dih."""
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  (workdir / 'student/dih/result.json').unlink()
  return prepared(workdir, digits_dir)


def replaced(folder, variables):
  shutil.rmtree(folder)
  shutil.copytree(variables, folder)


@pytest.mark.parametrize('phase, other', [
    ('teacher', 'student/ce'), ('teacher', 'heads'), ('heads', 'teacher')])
def test_a_folder_with_other_variables_is_refused(finished, copy, phase, other):
  """Of other shapes too, in the same way."""
  folder = copy.workdir.path / phase
  replaced(folder / 'variables', finished / other / 'variables')
  line = refused(run_student, copy, 'dih')
  assert line.startswith(f"--workdir: '{folder}/variables' does not hold the variables that "
                         f'{folder}/result.json names; restore the folder')
  assert line == refused(explore.load, copy.workdir.path)


@pytest.mark.parametrize('phase', ['teacher', 'heads'])
def test_variables_that_differ_in_a_number_are_refused(finished, copy, tmp_path, phase):
  variables = orbax_files.restore(finished / phase / 'variables')
  changed = jax.tree.map(lambda x: x + 1, variables)
  exported_variables.save(copy.workdir.path / phase / 'variables', changed,
                          described(finished / phase / 'variables'))
  assert 'does not hold the variables that' in refused(run_student, copy, 'dih')


def test_heads_that_have_their_taps_in_another_order_are_refused(copy):
  """An earlier version sorted them; members have numbers of their own by their order."""
  path = copy.workdir.path / 'heads/variables'
  variables, meta = orbax_files.restore(path), described(path)
  meta['model']['taps'] = dict(reversed(meta['model']['taps'].items()))
  exported_variables.save(path, variables, meta)
  assert refused(run_student, copy, 'dih').endswith(
      "are those of the taps ['stage2', 'stage1'], in this order; set config.heads.taps=stage2,"
      'stage1, with --accept=config, or choose another folder')


def test_a_finished_student_with_the_variables_of_another_is_refused(
    finished, copy, digits_dir, tmp_path, capsys):
  folder = copy.workdir.path / 'student' / 'kd'
  replaced(folder / 'variables', finished / 'student/ce/variables')
  assert main.main(tiny_command(copy.workdir.path, digits_dir)) == 2
  assert f"--workdir: '{folder}/variables' does not hold the variables" in capsys.readouterr().err


def test_exported_variables_that_are_missing_are_named_and_made_again_by_the_remedy(
    finished, copy, digits_dir, tmp_path, capsys):
  shutil.rmtree(copy.workdir.path / 'student/kd/variables')
  command = tiny_command(copy.workdir.path, digits_dir)
  assert main.main(command) == 0
  result = copy.workdir.path / 'student/kd/result.json'
  assert f'there are no exported variables; remove {result} to' in capsys.readouterr().err
  result.unlink()
  assert main.main(command) == 0
  assert_bit_identical(copy.workdir.path, finished, ('student/kd', 'student/dih'))


def change_weights(experiment, change):
  path = experiment.workdir.path / 'heads' / 'result.json'
  result = json.loads(path.read_text())
  change(result)
  path.write_text(json.dumps(result))
  return path


def test_weights_of_members_are_those_that_were_exported_with_the_heads(finished, copy):
  result = json.loads((finished / 'heads/result.json').read_text())
  owner = load_teacher(copy)[1]
  assert load_heads(copy, owner)[1] == result['weights'] == described(
      finished / 'heads' / 'variables')['weights']
  assert {rule: len(numbers) for rule, numbers in result['weights'].items()} == {
      'accuracy': 3, 'learnt': 3}
  path = change_weights(copy, lambda result: result['weights']['learnt'].reverse())
  line = refused(run_student, copy, 'dih')
  assert line.startswith(f'--workdir: the member weights in {path} differ from those')
  assert 'restore the file from a copy' in line


def test_heads_of_an_earlier_version_have_the_weights_of_their_result(finished, copy):
  copied(finished, copy.workdir.path / 'heads' / 'variables',
         lambda meta: meta.pop('weights'), phase='heads')
  change_weights(copy, lambda result: result.update(weights={'learnt': [1.0, 2.0, 0.0]}))
  owner = load_teacher(copy)[1]
  assert load_heads(copy, owner)[1] == {'learnt': [1.0, 2.0, 0.0]}
  change_weights(copy, lambda result: result.pop('weights'))
  assert load_heads(copy, owner)[1] == {}


@pytest.mark.parametrize('weights', [
    3, [1.0], {'learnt': [1.0]}, {'learnt': ['a', 'b', 'c']}, {'learnt': 1.0}, None])
def test_weights_that_cannot_be_are_refused(finished, copy, weights):
  copied(finished, copy.workdir.path / 'heads' / 'variables',
         lambda meta: meta.pop('weights'), phase='heads')
  path = change_weights(copy, lambda result: result.update(weights=weights))
  line = refused(run_student, copy, 'dih')
  assert line.startswith(f'{path} is damaged (')
