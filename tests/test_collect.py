"""Finished students found on disk, in runs and sweeps, and everything that is wrong there."""
import json
import os
import pathlib
import subprocess
import sys

import pytest
from made_results import heads, result

from kdih import config_lib
from kdih.collect import collect
from kdih.comparison import compare


def write(path: pathlib.Path, content) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))


def manifest(workdir, seed=3, **fields) -> None:
  """That of a run of resnet110 to resnet8 with other values of some fields of the config."""
  config = config_lib.base()
  config.seed = seed
  config.data.name = 'cifar100'
  config.update_from_flattened_dict(fields)
  write(workdir / 'manifest.json', {'config': json.loads(config.to_json())})


def student(workdir, method, top1=0.6, seed=3, **fields) -> None:
  write(workdir / 'student' / method / 'result.json',
        result(top1, seed=seed, method=dict(kind=method), **fields))


def single(workdir, *methods, seed=3, top1=0.6, fingerprint='t', **fields) -> pathlib.Path:
  """A workdir of kdih.main."""
  manifest(workdir, seed, **fields)
  write(workdir / 'teacher/result.json', result(0.75, fingerprint=fingerprint))
  write(workdir / 'heads/result.json', heads('stage1'))
  for method in methods:
    student(workdir, method, top1, seed)
  return workdir


def swept(workdir, *methods, seeds=(30, 50), top1=0.6, **fields) -> pathlib.Path:
  """A workdir of kdih.sweep with one teacher and one student."""
  write(workdir / 'sweep.json', {'methods': methods, 'seeds': seeds})
  single(workdir / 'resnet110', **fields)
  for seed in seeds:
    folder = workdir / 'resnet110/resnet8' / f'seed{seed}'
    manifest(folder, seed, **fields)
    for method in methods:
      student(folder, method, top1, seed)
  return workdir


def found(*paths):
  runs, problems = collect(paths)
  return [(run.method, run.seed) for run in runs], problems


def test_a_run_is_read(tmp_path):
  single(tmp_path / 'w', 'ce', 'kd')
  (ce, kd), problems = collect([tmp_path / 'w'])
  assert problems == []
  assert (ce.data, ce.teacher, ce.student, ce.method, ce.seed) == (
      'cifar100', 'resnet110', 'resnet8', 'ce', 3)
  assert kd.path == str(tmp_path / 'w') and kd.method == 'kd' and kd.protocol == ce.protocol
  assert kd.result == result(0.6, method=dict(kind='kd'))
  assert kd.teacher_result['fingerprint'] == 't' and kd.heads_result == heads('stage1')


def test_the_runs_of_a_sweep_share_its_teacher_and_heads(tmp_path):
  swept(tmp_path / 's', 'ce', 'dih')
  runs, problems = collect([tmp_path / 's'])
  assert [(run.method, run.seed) for run in runs] == [
      ('ce', 30), ('dih', 30), ('ce', 50), ('dih', 50)] and problems == []
  assert {run.teacher_result['fingerprint'] for run in runs} == {'t'}
  assert all(run.heads_result == heads('stage1') for run in runs)
  assert len({run.protocol for run in runs}) == 1


@pytest.mark.parametrize('path', ['.', 's', 's/resnet110', 's/resnet110/resnet8/seed30',
                                  's/resnet110/resnet8/seed30/.'])
def test_any_folder_above_a_run_may_be_given(tmp_path, monkeypatch, path):
  swept(tmp_path / 's', 'ce', seeds=(30,))
  monkeypatch.chdir(tmp_path)
  (run,), problems = collect([path])
  assert run.teacher_result is not None and problems == []
  monkeypatch.chdir(tmp_path / path)
  (run,), problems = collect(['.'])
  assert run.teacher_result is not None and problems == []


def test_a_folder_of_several_and_overlapping_folders(tmp_path):
  swept(tmp_path / 'all/s', 'ce')
  single(tmp_path / 'all/deep/w', 'kd')
  expected = [('kd', 3), ('ce', 30), ('ce', 50)]
  assert found(tmp_path / 'all') == (expected, [])
  assert found(tmp_path / 'all', tmp_path / 'all/s', tmp_path / 'all/deep/w') == (expected, [])


def test_assistants_and_preparations_are_no_students(tmp_path):
  single(tmp_path, 'takd')
  for name in ('assistant1', 'prepare'):
    write(tmp_path / f'student/takd/{name}/result.json', result(0.5))
  assert found(tmp_path) == ([('takd', 3)], [])


def test_a_student_without_a_teacher_is_read(tmp_path):
  manifest(tmp_path)
  student(tmp_path, 'ce')
  (run,), problems = collect([tmp_path])
  assert (run.teacher_result, run.heads_result, problems) == (None, None, [])


@pytest.mark.parametrize('name, value, same', [
    ('seed', 4, True), ('data.data_dir', '/x', True), ('data.loader', 'streaming', True),
    ('data.eval_global_batch_size', 7, True), ('student.methods', ('kd',), True),
    ('log_every_steps', 9, True), ('methods.kd.alpha', 0.5, True), ('data.padding', 0, False),
    ('heads.variables', 'x', True), ('heads.kind', 'gap', False), ('dtype', 'bfloat16', False),
    ('student.train.length', 4.0, False), ('student.prepare.length', 4.0, False),
    ('student.taps', ('stage1',), False), ('sync_batch_norm', False, False),
])
def test_what_a_protocol_consists_of(tmp_path, name, value, same):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce', **{name: value})
  runs, _ = collect([tmp_path / 'a', tmp_path / 'b'])
  assert (len({run.protocol for run in runs}) == 1) == same


def test_another_teacher_is_another_protocol_which_the_comparison_names(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce', fingerprint='other')
  runs, problems = collect([tmp_path])
  assert len(runs) == 2 and problems == []
  assert [line.rsplit(maxsplit=1)[1] for line in compare(runs)[1]] == ['teacher']


# What is wrong.


def test_the_unfinished_and_the_failed_are_named_and_the_rest_goes_on(tmp_path):
  swept(tmp_path, 'ce', seeds=(30,))
  run = tmp_path / 'resnet110/resnet8/seed30'
  (run / 'student/kd/checkpoints').mkdir(parents=True)
  write(run / 'student/dih/failure.json', {'error': 'TrainingError: loss is nan'})
  (run / 'student/metrics.txt').write_text('no folder')
  assert found(tmp_path) == ([('ce', 30)], [
      f'{run}/student/dih: failed: TrainingError: loss is nan',
      f'{run}/student/kd: is not finished, there is no result.json'])


def test_a_failure_that_was_made_good_is_none(tmp_path):
  single(tmp_path, 'ce')
  write(tmp_path / 'student/ce/failure.json', {'error': 'x'})
  assert found(tmp_path) == ([('ce', 3)], [])


def without(content: dict, key: str) -> dict:
  """A copy that lacks `key`."""
  first, *rest = key.split('.', 1)
  return {name: without(value, rest[0]) if rest and name == first else value
          for name, value in content.items() if rest or name != first}


GOOD = result(0.6, method=dict(kind='kd'))
BROKEN = [
    ('', 'is not JSON (Expecting value: line 1 column 1 (char 0))'),
    ('{"seed": 3', 'is not JSON (Expecting \',\' delimiter: line 1 column 11 (char 10))'),
    ('[]', "'test_last.top1' is missing"), ('null', "'test_last.top1' is missing"),
    *((without(GOOD, key), f'{key!r} is missing') for key in (
        'test_last.top1', 'test_best_val.top1', 'val', 'val.top1', 'seed', 'parameters',
        'method.kind')),
    (without(GOOD, 'method'), "'method.kind' is missing"),
    (without(GOOD, 'test_last'), "'test_last.top1' is missing"),
    ({**GOOD, 'seed': '3'}, "'seed' is '3', and must be of type int"),
    ({**GOOD, 'parameters': None}, "'parameters' is None, and must be of type int"),
    *(({**GOOD, 'test_last': {'top1': bad}},
       f"'test_last.top1' is {bad!r}, and must be a number from 0 to 1")
      for bad in (61.2, -0.1, float('nan'), None, True)),
]


@pytest.mark.parametrize('content, expected', BROKEN)
def test_a_broken_result_is_named_and_the_rest_goes_on(tmp_path, content, expected):
  single(tmp_path, 'ce')
  path = tmp_path / 'student/kd/result.json'
  write(path, content)
  assert found(tmp_path) == ([('ce', 3)], [f'{path}: {expected}'])


def test_bytes_that_are_no_text_are_named(tmp_path):
  single(tmp_path, 'ce', 'kd')
  (tmp_path / 'student/kd/result.json').write_bytes(b'\xff\xfe{')
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)]
  assert problem.startswith(f'{tmp_path}/student/kd/result.json: is not JSON (')


def test_a_result_that_is_a_folder_is_named(tmp_path):
  single(tmp_path, 'ce')
  (tmp_path / 'student/kd/result.json').mkdir(parents=True)
  assert found(tmp_path) == ([('ce', 3)], [
      f'{tmp_path}/student/kd/result.json: cannot be read (Is a directory)'])


def test_a_broken_failure_is_named(tmp_path):
  single(tmp_path, 'ce')
  write(tmp_path / 'student/kd/failure.json', {'time': 1.0})
  assert found(tmp_path) == ([('ce', 3)], [
      f"{tmp_path}/student/kd/failure.json: 'error' is missing"])


@pytest.mark.parametrize('content, expected', [
    ('{', 'is not JSON'), ({}, "'config.data.name' is missing"),
    ({'config': {'data': {'name': 3}}}, "'config.data.name' is 3, and must be of type str")])
def test_a_broken_manifest_leaves_out_its_students_alone(tmp_path, content, expected):
  single(tmp_path / 'a', 'ce', 'kd')
  single(tmp_path / 'b', 'ce', seed=4)
  write(tmp_path / 'a/manifest.json', content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 4)]
  assert problem.startswith(f'{tmp_path}/a/manifest.json: {expected}')
  assert problem.endswith('; its students are left out')


def test_a_missing_manifest_is_named(tmp_path):
  single(tmp_path / 'a', 'ce')
  (tmp_path / 'a/manifest.json').unlink()
  assert found(tmp_path) == ([], [f'{tmp_path}/a/manifest.json: cannot be read (No such file or '
                                  'directory); its students are left out'])


def test_the_broken_teacher_of_a_sweep_is_named_once(tmp_path):
  swept(tmp_path, 'ce', 'kd')
  path = tmp_path / 'resnet110/teacher/result.json'
  write(path, without(result(0.75), 'fingerprint'))
  assert found(tmp_path) == ([], [
      f"{path}: 'fingerprint' is missing; its students are left out"])


def test_broken_heads_and_an_unfinished_teacher_are_named_and_nothing_is_left_out(tmp_path):
  swept(tmp_path, 'ce')
  path = tmp_path / 'resnet110/heads/result.json'
  write(path, result(0.7))
  (tmp_path / 'resnet110/teacher/result.json').unlink()
  runs, problems = collect([tmp_path])
  assert [(run.seed, run.teacher_result, run.heads_result) for run in runs] == [
      (30, None, None), (50, None, None)]
  assert problems == [
      f'{tmp_path}/resnet110/teacher: is not finished, there is no result.json',
      f"{path}: 'members' is missing"]


def test_the_same_run_with_other_numbers_is_named_and_the_first_is_taken(tmp_path):
  single(tmp_path / 'a', 'ce', 'kd', top1=0.6)
  single(tmp_path / 'b', 'ce', top1=0.7)
  single(tmp_path / 'c', 'kd', top1=0.6)
  runs, problems = collect([tmp_path])
  assert [(run.path, run.method) for run in runs] == [
      (f'{tmp_path}/a', 'ce'), (f'{tmp_path}/a', 'kd')]
  assert problems == [
      f'{tmp_path}/b: ce with seed 3 has other numbers than in {tmp_path}/a, under the same '
      'protocol; those of the latter are taken']


def test_folders_that_hold_nothing_are_named(tmp_path):
  single(tmp_path / 'w')
  (tmp_path / 'file').write_text('')
  assert found(tmp_path / 'w', tmp_path / 'no', tmp_path / 'file') == ([], [
      f'{tmp_path}/w: holds no student', f'{tmp_path}/no: there is no such folder',
      f'{tmp_path}/file: there is no such folder'])


def test_results_are_read_without_jax_and_tensorflow():
  code = ('import sys; import kdih.collect, kdih.tables, kdih.analysis; '
          'print([name for name in ("jax", "tensorflow", "flax") if name in sys.modules])')
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                         env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])})
  assert ended.stdout == '[]\n'
