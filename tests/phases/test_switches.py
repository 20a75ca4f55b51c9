"""Every field of the config has an effect: a field that is ignored fails a test here.

`PROGRAMS` compares traced programs, the other tests what a field does to arrays, shapes and steps.
"""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.config.fields import FIELDS
from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.models import taps
from kdih.phases import computation, networks
from kdih.phases.blank import BlankRun
from kdih.phases.problem import TrainingData
from kdih.phases.student import teacher_of
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices, digests, processes
from kdih.training import steps_per_call
from kdih.training.loop_schedule import LoopSchedule
from tests.helpers.runs import ROOT, read_config
from tests.phases.test_problem import experiment

SPEC = DataSpec('digits', (8, 8, 1), 10)
AUGMENTED = ('data.padding=1', 'data.flip=true')

# (the phase whose step is compared, settings that both programs have, the setting that differs).
PROGRAMS = [
    # The recipe of a phase.
    *(('student/kd', (), f'student.train.{setting}') for setting in (
        'optimizer=adamw', 'momentum=0.5', 'nesterov=false', 'weight_decay=0.01',
        'learning_rate=0.2', 'schedule=cosine', 'milestones=3', 'decay=0.3', 'warmup=2',
        'global_batch_size=16')),
    ('student/kd', ('student.train.schedule=cosine',), 'student.train.length=7'),
    ('student/kd', (), 'student.train.unit=epochs'),
    ('teacher', (), 'teacher.train.learning_rate=0.2'),
    ('heads', (), 'heads.train.learning_rate=0.2'),
    ('student/fitnets/prepare', (), 'student.prepare.learning_rate=0.2'),
    ('student/kd', (), 'methods.kd.learning_rate=0.2'),
    # The images.
    *(('student/kd', AUGMENTED, f'data.{setting}') for setting in (
        'mean=0.3', 'std=0.3', 'padding=2', 'padding_mode=reflect', 'flip=false')),
    *(('teacher', AUGMENTED, f'data.{setting}') for setting in ('mean=0.3', 'padding=2')),
    # The models and their taps.
    *((phase, (), setting) for phase in ('teacher', 'student/kd') for setting in (
        'dtype=bfloat16', 'sync_batch_norm=false')),
    ('teacher', (), 'teacher.name=tests.helpers.tiny_nets:Diverging'),
    ('teacher', (), 'teacher.kwargs.width=3'),
    ('student/kd', (), 'student.name=tests.helpers.odd_nets:Kept'),
    ('student/kd', (), 'student.kwargs.width=3'),
    ('heads', (), 'heads.kind=gap'), ('heads', (), 'heads.taps=stage2'),
    *(('student/at', ('student.taps=stage1', 'student.teacher_taps=stage1'), setting)
      for setting in ('student.taps=stage2', 'student.teacher_taps=stage2')),
    # How it is computed.
    ('student/kd', (), 'compute.teacher_dtype=bfloat16'),
    ('heads', (), 'compute.teacher_dtype=bfloat16'),
    ('student/dih', (), 'compute.mean_soft_label=false'),
    *(('student/dih', (), f'compute.{setting}') for setting in (
        'accumulate=2', 'remat=true', 'cache=all_views', 'cache=views:2')),
    ('student/dih', ('compute.cache=all_views',), 'compute.cache_members=true'),
    ('heads', ('compute.cache=views:2',), 'compute.cache_taps=true')]
ARRAYS = (  # The fields of the other tests of this file.
    'dtype', 'sync_batch_norm', 'heads.kind', 'compute.teacher_dtype', 'compute.fold_batch_norm',
    'data.validation_fraction', 'data.validation_seed', 'seed', 'data.order_seed', 'data.loader',
    'data.eval_global_batch_size', 'log_every_steps', 'on_nan', 'max_rewinds',
    'distributed.detect', 'compute.prefetch', 'compute.steps_per_call', *(
        f'{group}.evaluate_every' for group in (
            'teacher.train', 'heads.train', 'student.train', 'student.prepare')))
ELSEWHERE = {  # {tests: fields that they cover}.
    'tests/main/test_dry_run.py': ('dry_run', 'dry_run_seconds', 'phases', 'student.methods'),
    'tests/phases/test_pipeline.py': ('profile',),
    'tests/phases/test_identity.py': ('accept',),
    'tests/phases/test_existing_teacher.py': ('teacher.variables', 'heads.variables'),
    'tests/phases/test_cached_runs.py': ('compute.cache_place',),
    'tests/runtime/test_environment.py': (
        'deterministic', 'compute.keep_freed_memory', 'compute.compilation_cache'),
    'tests/main/test_processes.py': tuple(f'distributed.{name}' for name in (
        'coordinator', 'num_processes', 'process_id', 'timeout')),
    'tests/data/test_image_folder.py': ('data.folder', 'data.image_size'),
    'tests/data/test_source.py': tuple(f'data.{name}' for name in (
        'name', 'data_dir', 'train_split', 'image_key', 'label_key')),
    'tests/data/test_selection.py': ('data.test_split',),
    'tests/sweep/test_plan.py': tuple(f'sweep.{name}' for name in (
        'pairs', 'students', 'methods', 'seeds')),
    'tests/sweep/test_variants.py': ('sweep.alphas', 'sweep.learning_rates'),
    'tests/training/test_together.py': ('sweep.together', 'sweep.together_by')}


def blank(*overrides, **options) -> BlankRun:
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  return BlankRun(config, networks.build(config, SPEC), made_splits(
      SPEC, 200, 50, loader=config.data.loader), **options)


def problem_of_step(phase, *overrides, **options):
  """The training problem of a step, such as 'student/fitnets/prepare'."""
  method = ('student.methods=' + phase.split('/')[1],) if phase.startswith('student/') else ()
  run = blank(*method, *overrides, **options)
  problem, = (step.problem() for step in run.steps(phase.removesuffix('/prepare'))
              if step.phase == phase)
  return problem


@functools.cache
def program(phase, *overrides) -> str:
  """A digest of the traced step of a phase: sampling, augmentation, teachers, loss and update."""
  problem = problem_of_step(phase, *overrides, shapes=True)
  state = jax.eval_shape(lambda variables: problem.state(variables, 30), dict(problem.variables))
  traced = jax.make_jaxpr(problem.compiled())(
      state, problem.task.frozen, problem.resident, next(problem.feeds(0, [1])))
  constants = [digests.of(computation._numbers(value)) for value in computation._constants(traced)]
  return digests.of_json([re.sub(' at 0x[0-9a-f]+', '', str(traced)), constants])


@pytest.mark.parametrize('phase, settings, setting', PROGRAMS, ids=[
    f'{phase} {setting}' for phase, _, setting in PROGRAMS])
def test_a_setting_changes_the_program_of_a_step(phase, settings, setting):
  assert program(phase, *settings) != program(phase, *settings, setting)


def test_a_program_that_is_traced_again_has_the_same_digest():
  again = program.__wrapped__
  assert program('student/dih') == again('student/dih')
  assert program('student/kd') == again('student/kd', 'student.prepare.learning_rate=0.2')


def test_every_field_is_covered_by_a_test():
  of_programs = {setting.partition('=')[0].removesuffix('.width') for _, _, setting in PROGRAMS}
  covered = of_programs | set(ARRAYS) | {name for names in ELSEWHERE.values() for name in names}
  groups = ('teacher.train', 'heads.train', 'student.prepare')
  same = {f'{group}.{name.removeprefix("student.train.")}' for group in groups
          for name in covered if name.startswith('student.train.')}  # One function reads all four.
  assert set(FIELDS) <= covered | same
  for path, names in ELSEWHERE.items():
    text = (ROOT / path).read_text()
    missing = [name for name in names if name.rpartition('.')[2] not in text]
    assert not missing, (path, missing)


# The type in which models compute.


def model_of(role, *overrides):
  """(the module of a run, random variables)."""
  built = blank(*overrides, shapes=True).built
  shapes, rng = getattr(built, f'{role}_variables'), np.random.default_rng(0)
  return getattr(built, role), jax.tree.map(
      lambda leaf: 0.5 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32), shapes)


IMAGES = np.random.default_rng(1).normal(size=(4, 8, *SPEC.image_shape)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, variables):
  return taps.observe(model, variables, IMAGES[0], ())[0].logits


@pytest.mark.parametrize('role', ['teacher', 'student'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_models_compute_in_dtype_and_keep_parameters_in_float32(role, dtype):
  built = blank(f'dtype={dtype}', shapes=True).built
  model, variables = getattr(built, role), getattr(built, f'{role}_variables')
  sown = jax.eval_shape(lambda variables: model.apply(
      variables, IMAGES[0], train=False, mutable=['intermediates'])[1]['intermediates'], variables)
  assert {sown[tap][0].dtype.name for tap in ('stage1', 'stage2')} == {dtype}
  assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {'float32'}


def products(function, *arguments) -> dict[str, int]:
  """{dtype of the result: number of convolutions and products} in a traced program."""
  text = str(jax.make_jaxpr(function, axis_env=[(devices.AXIS, 4)])(*arguments))
  found: dict[str, int] = {}
  for dtype in re.findall(r':(\w+)\[[^]]*\] = (?:conv_general_dilated|dot_general)', text):
    found[dtype] = found.get(dtype, 0) + 1
  return found


@pytest.mark.parametrize('settings, of_teacher, of_student', [
    ((), 'f32', 'f32'), (('dtype=bfloat16',), 'bf16', 'bf16'),
    (('compute.teacher_dtype=bfloat16',), 'bf16', 'f32'),
    (('dtype=bfloat16', 'compute.teacher_dtype=float32'), 'f32', 'bf16')])
def test_teacher_dtype_is_of_the_frozen_teacher_alone(settings, of_teacher, of_student):
  problem = problem_of_step('student/kd', *settings, shapes=True)

  def signal(frozen):
    return problem.task.signals.blank(frozen, 8, SPEC.image_shape)

  assert products(signal, problem.task.frozen).get(of_teacher, 0) >= 2  # Both convolutions.
  assert (of_teacher == 'bf16') == ('bf16' in products(signal, problem.task.frozen))
  taught = products(lambda variables, frozen, signal: problem.blank_loss(
      variables, frozen, signal, 8), problem.variables, problem.task.frozen,
                    jax.eval_shape(signal, problem.task.frozen))
  assert taught.get(of_student, 0) >= 2 and (of_student == 'bf16') == ('bf16' in taught)


def test_bfloat16_changes_logits_by_its_rounding():
  exact, rounded = (np.asarray(logits(*model_of('student', f'dtype={dtype}')), np.float32)
                    for dtype in ('float32', 'bfloat16'))
  assert (exact != rounded).any()
  np.testing.assert_allclose(rounded, exact, rtol=0.05, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize('role', ['teacher', 'student'])
@pytest.mark.parametrize('on', [True, False])
def test_sync_batch_norm_takes_the_statistics_of_all_devices(role, on):
  model, variables = model_of(role, f'sync_batch_norm={on}')
  _, changed = jax.jit(jax.vmap(
      lambda images: taps.observe(model, variables, images, (), train=True),
      axis_name=devices.AXIS))(IMAGES)
  mean = changed['batch_stats']['BatchNorm_0']['mean']  # [devices, channels]
  assert np.allclose(mean, mean[:1], atol=1e-6) == on


# The optimizer.


def first_update(*overrides):
  """How the optimizer of the teacher changes parameters of 2, 3 by gradients of 0.5, -1."""
  tx = problem_of_step('teacher', *overrides, shapes=True).tx
  params, gradients = jnp.array([2.0, 3.0]), jnp.array([0.5, -1.0])
  return tx.update(gradients, tx.init(params), params)[0]


@pytest.mark.parametrize('settings, factor, decay', [
    (('learning_rate=0.1', 'weight_decay=0'), 0.1 * 1.9, 0.0),
    (('learning_rate=0.2', 'weight_decay=0'), 0.2 * 1.9, 0.0),
    (('learning_rate=0.1', 'weight_decay=0.5'), 0.1 * 1.9, 0.5),
    (('learning_rate=0.1', 'weight_decay=0.5', 'momentum=0.4'), 0.1 * 1.4, 0.5),
    (('learning_rate=0.1', 'weight_decay=0.5', 'nesterov=false'), 0.1, 0.5)])
def test_the_first_update_is_the_recipe(settings, factor, decay):
  """Nesterov: -learning_rate (1 + momentum) (gradient + weight_decay parameter)."""
  found = first_update(*(f'teacher.train.{setting}' for setting in settings))
  np.testing.assert_allclose(
      found, -factor * (np.array([0.5, -1.0]) + decay * np.array([2.0, 3.0])), rtol=1e-5)


def test_a_learning_rate_of_a_method_is_that_of_its_students_alone():
  run = blank('student.methods=kd,ce', 'methods.kd.learning_rate=0.4', shapes=True)
  (kd,), (ce,) = (list(run.steps(f'student/{name}')) for name in ('kd', 'ce'))
  assert (kd.problem().train.learning_rate, ce.problem().train.learning_rate) == (0.4, 0.1)


# The heads.


@pytest.mark.parametrize('kind, sizes', [('flatten', (4 * 4 * 4, 2 * 2 * 8)), ('gap', (4, 8))])
def test_a_head_reads_the_feature_or_its_mean(kind, sizes):
  built = blank(f'heads.kind={kind}', shapes=True).built
  heads = networks.abstract_heads(built)['params']
  assert tuple(head['kernel'].shape for head in heads.values()) == tuple(
      (size, 10) for size in sizes)


# The frozen teacher.


def test_folding_leaves_no_batch_norm_and_the_same_logits():
  def signal(on):
    config = read_config('unused', 'unused', f'--config.compute.fold_batch_norm={on}',
                         '--config.teacher.name=resnet8')
    built = networks.build(config, SPEC)
    _, variables = model_of('teacher', 'teacher.name=resnet8')
    teacher = teacher_of(config, built, {'teacher': variables})
    of_teacher = teacher.module, teacher.frozen['teacher']
    return str(jax.make_jaxpr(logits, static_argnums=0)(*of_teacher)).count('rsqrt'), logits(
        *of_teacher)

  (norms, expected), (none, found) = signal('false'), signal('true')
  assert (norms, none) == (9, 0)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


# The data.


def data_of(*overrides) -> TrainingData:
  return TrainingData(read_config('unused', 'unused', *(f'--config.{item}' for item in overrides)),
                      made_splits(SPEC, 100, 50))


def test_a_fraction_of_the_train_split_validates():
  for fraction in (0.0, 0.2, 0.5):
    data = data_of(f'data.validation_fraction={fraction}')
    assert len(data.validation_subset) == 100 * fraction
    assert sorted([*data.train_subset, *data.validation_subset]) == list(range(100))
  one, again, other = (data_of(f'data.validation_seed={seed}').validation_subset.tolist()
                       for seed in (0, 0, 1))
  assert one == again != other


def first_batch(*overrides) -> list[int]:
  problem = problem_of_step('teacher', *overrides, shapes=True)
  return next(problem.feeds(0, [1]))['index'].ravel().tolist()


def test_seed_and_order_seed_choose_the_batches():
  batches = [first_batch(*overrides) for overrides in (
      (), ('seed=30',), ('seed=31',), ('seed=30', 'data.order_seed=7'),
      ('seed=31', 'data.order_seed=7'), ('data.order_seed=8',))]
  assert batches[0] == batches[1] != batches[2]
  assert batches[3] == batches[4] not in (*batches[:3], batches[5])


def test_only_the_memory_loader_keeps_images_on_the_devices():
  memory, streaming = (problem_of_step('teacher', f'data.loader={loader}', shapes=True).resident
                       for loader in ('memory', 'streaming'))
  assert set(memory) == {'image', 'label'} and not streaming


def test_prefetch_is_the_number_of_feeds_put_on_the_devices_ahead(monkeypatch):
  ahead = []
  monkeypatch.setattr(steps_per_call, 'ahead', lambda feeds, number: ahead.append(number))
  for number in (2, 5):
    problem_of_step('teacher', 'data.loader=streaming', f'compute.prefetch={number}',
                    shapes=True).feeds(0, [1])
  assert ahead == [2, 5]


def test_seed_chooses_the_initial_variables(tmp_path):
  keys = [jax.random.key_data(experiment(tmp_path, f'seed={seed}').key(role)).tolist()
          for seed in (30, 31) for role in (0, 2)]
  assert len({tuple(key) for key in keys}) == 4


def test_an_evaluation_step_has_its_own_batch_size(tmp_path):
  run = experiment(tmp_path, 'data.eval_global_batch_size=12')
  task = teacher_task(run.networks.teacher, run.data.preprocess)
  evaluator = run._evaluator(task, 'test', np.arange(20))
  assert evaluator._batch_size == 12


# The loop.


def schedule_of(*overrides, phase='teacher') -> LoopSchedule:
  return problem_of_step(phase, *overrides, shapes=True).schedule(phase)


@pytest.mark.parametrize('settings, field, value', [
    (('log_every_steps=7',), 'log_every', 7), (('compute.steps_per_call=3',), 'per_call', 3),
    ((), 'max_rewinds', 0), (('on_nan=rewind',), 'max_rewinds', 3),
    (('on_nan=rewind', 'max_rewinds=5'), 'max_rewinds', 5),
    (('teacher.train.length=9',), 'total_steps', 9),
    (('teacher.train.unit=epochs', 'teacher.train.length=2', 'teacher.train.milestones='),
     'total_steps', 10), (('teacher.train.evaluate_every=3',), 'evaluate_every', 3)])
def test_a_setting_is_a_field_of_the_schedule(settings, field, value):
  assert getattr(schedule_of(*settings), field) == value


@pytest.mark.parametrize('phase, group', [
    ('heads', 'heads.train'), ('student/kd', 'student.train'),
    ('student/fitnets/prepare', 'student.prepare')])
def test_a_phase_trains_by_its_own_group(phase, group):
  schedule = schedule_of(f'{group}.evaluate_every=3', f'{group}.length=9', phase=phase)
  assert (schedule.evaluate_every, schedule.total_steps) == (3, 9)


# Several processes.


@pytest.mark.parametrize('detect', [True, False])
def test_the_processes_of_a_cluster_are_joined_unless_that_is_switched_off(detect, monkeypatch):
  joined = []
  monkeypatch.setattr(processes, '_in_cluster', lambda: True)
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **arguments: joined.append(arguments))
  config = read_config('unused', 'unused', f'--config.distributed.detect={detect}')
  processes.join(config.distributed)
  assert len(joined) == detect
