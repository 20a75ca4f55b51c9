"""Damaged and unfinished runs and sweeps are reported, and all other runs are read."""
import json

import pytest

from kdih.report.collect import collect
from tests.helpers.made_pairs import heads as analysed_heads
from tests.helpers.made_results import heads, result
from tests.helpers.made_workdirs import found, single, student, swept, write


def test_unfinished_and_failed_students_are_reported_and_all_others_are_read(tmp_path):
  swept(tmp_path, 'ce', seeds=(30,))
  run = tmp_path / 'resnet110/resnet8/seed30'
  (run / 'student/kd/checkpoints').mkdir(parents=True)
  write(run / 'student/dih/failure.json', {'error': 'TrainingError: loss is nan'})
  (run / 'student/metrics.txt').write_text('no folder')
  assert found(tmp_path) == ([('ce', 30)], [
      f'{run}/student/dih: failed: TrainingError: loss is nan',
      f'{run}/student/kd: is not finished, there is no result.json'])


def test_a_failure_that_was_repaired_is_not_reported(tmp_path):
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
    ({**GOOD, 'seed': '3'}, "'seed' is '3', and must be a whole number, 0 or more"),
    ({**GOOD, 'parameters': None}, "'parameters' is None, and must be a whole number, 0 or more"),
    ({**GOOD, 'parameters': -1}, "'parameters' is -1, and must be a whole number, 0 or more"),
    ({**GOOD, 'flops': 1.5}, "'flops' is 1.5, and must be a whole number, 0 or more"),
    ({**GOOD, 'test_last': {'top1': 0.5, 'agreement': 'x'}},
     "'test_last.agreement' is 'x', and must be a number from 0 to 1"),
    ({**GOOD, 'val': {'top1': 7}}, "'val.top1' is 7, and must be a number from 0 to 1"),
    ('[' * 100000, 'is not JSON (maximum recursion depth exceeded'),
    *(({**GOOD, 'test_last': {'top1': bad}},
       f"'test_last.top1' is {bad!r}, and must be a number from 0 to 1")
      for bad in (61.2, -0.1, float('nan'), None, True)),
]


@pytest.mark.parametrize('content, expected', BROKEN)
def test_a_broken_result_is_reported_and_all_others_are_read(tmp_path, content, expected):
  single(tmp_path, 'ce')
  path = tmp_path / 'student/kd/result.json'
  write(path, content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)] and problem.startswith(f'{path}: {expected}')


def test_fields_that_may_be_missing_or_null(tmp_path):
  single(tmp_path)
  for at, fields in enumerate(({'flops': None}, {'flops': 7}, {'val': None})):
    student(tmp_path, f'm{at}', **fields)
  assert found(tmp_path) == ([('m0', 3), ('m1', 3), ('m2', 3)], [])


def changed(content: dict, value, *names: str) -> dict:
  """A copy with another value under the keys `names`."""
  first, *rest = names
  return {**content, first: changed(content[first], value, *rest) if rest else value}


ANALYSED = {**heads('stage1', 'stage2', 'stage3'), **analysed_heads(4)}
BROKEN_HEADS = [
    (changed(ANALYSED, {}, 'members', 'stage1'), "'members.stage1.test_last.top1' is missing"),
    (changed(ANALYSED, [], 'analysis'), "'analysis' is [], and must be of type dict"),
    (changed(ANALYSED, {}, 'analysis'), "'analysis.members' is missing"),
    (changed(ANALYSED, {'x.y?': {}}, 'analysis', 'members'), "'members.x.y?' is missing"),
    (changed(ANALYSED, {'final': {'ece': 0.1}}, 'analysis', 'members'),
     "'analysis.members.final.entropy' is missing"),
    (changed(ANALYSED, float('inf'), 'analysis', 'members', 'final', 'entropy'),
     "'analysis.members.final.entropy' is inf, and must be a number, 0 or more"),
    (changed(ANALYSED, 1.5, 'analysis', 'members', 'final', 'ece'),
     "'analysis.members.final.ece' is 1.5, and must be a number from 0 to 1"),
    (changed(ANALYSED, ['final'], 'analysis', 'agreement', 'names'),
     "'analysis.agreement.names' is ['final'], and must be ['stage1', 'stage2', "),
    (changed(ANALYSED, [[1.0]], 'analysis', 'agreement', 'matrix'),
     "'analysis.agreement.matrix' is [[1.0]], and must be 4 rows of as many numbers from 0 to 1"),
    (changed(ANALYSED, [[1, 1, 1, 2]] * 4, 'analysis', 'agreement', 'matrix'),
     "'analysis.agreement.matrix' is [[1, 1, 1, 2], "),
    (changed(ANALYSED, {'final': 0.5}, 'analysis', 'without'),
     "'analysis.without.none' is missing"),
    (changed(ANALYSED, {'none': 0.5, 'x': 'y'}, 'analysis', 'without'),
     "'analysis.without' is {'none': 0.5, 'x': 'y'}, and must be of numbers from 0 to 1"),
]


@pytest.mark.parametrize('content, expected', BROKEN_HEADS)
def test_broken_heads_are_named_and_only_their_pictures_are_left_out(tmp_path, content, expected):
  single(tmp_path, 'ce')
  path = tmp_path / 'heads/result.json'
  write(path, content)
  (run,), (problem,) = collect([tmp_path])
  assert run.heads_result is None
  assert problem.startswith(f'{path}: {expected}')
  assert problem.endswith('; the pictures of this cohort are left out')


@pytest.mark.parametrize('absent', ['analysis', 'analysis.agreement', 'analysis.without'])
def test_heads_may_lack_an_analysis(tmp_path, absent):
  single(tmp_path, 'ce')
  write(tmp_path / 'heads/result.json', without(ANALYSED, absent))
  (run,), problems = collect([tmp_path])
  assert run.heads_result == without(ANALYSED, absent) and problems == []


def test_members_may_have_any_names(tmp_path):
  single(tmp_path, 'ce')
  write(tmp_path / 'heads/result.json', json.dumps(ANALYSED).replace('stage1', 'a.b?'))
  (run,), problems = collect([tmp_path])
  assert 'a.b?' in run.heads_result['members'] and problems == []


def test_names_can_be_shown_in_one_line(tmp_path):
  single(tmp_path, 'a\nb\x01\udcff', **{'student.name': 'x\ud800\ty'})
  (tmp_path / 'student/c\nd').mkdir()
  (run,), (problem,) = collect([tmp_path])
  assert (run.method, run.student) == ('a b\ufffd\ufffd', 'x\ufffd y')
  assert problem == f'{tmp_path}/student/c d: is not finished, there is no result.json'


def test_bytes_that_are_not_text_are_reported(tmp_path):
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
    ({'config': {'data': {'name': 3}}}, "'config.data.name' is 3, and must be of type str"),
    ('[]', "'config.data.name' is missing")])
def test_a_broken_manifest_leaves_out_its_students_alone(tmp_path, content, expected):
  single(tmp_path / 'a', 'ce', 'kd')
  single(tmp_path / 'b', 'ce', seed=4)
  write(tmp_path / 'a/manifest.json', content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 4)]
  assert problem.startswith(f'{tmp_path}/a/manifest.json: {expected}')
  assert problem.endswith('; its students are left out')


def sweep_of(*asked) -> list[dict]:
  """The content of `sweep.json` for these (teacher, student, methods, seeds)."""
  return [{'pairs': [list(pair)], 'seeds': list(seeds), 'left_out': {}} for *pair, seeds in asked]


def test_runs_that_a_sweep_has_not_begun_are_reported(tmp_path):
  swept(tmp_path, 'ce', 'kd', seeds=(30, 50))
  home = tmp_path / 'resnet110'
  (home / 'resnet8/seed67/student/ce').mkdir(parents=True)
  (home / 'resnet8/seed67/manifest.json').write_text((home / 'manifest.json').read_text())
  asked = sweep_of(('resnet110', 'resnet8', ['ce', 'kd', 'dih'], (30, 67)),
                   ('my.nets:A/b', 'resnet8', ['ce'], (1, 2)))
  asked[0]['left_out'] = {'resnet110/vit_tiny/at': 'at: has no maps'}
  write(tmp_path / 'sweep.json', asked)
  assert found(tmp_path) == ([('ce', 30), ('kd', 30), ('ce', 50), ('kd', 50)], [
      f'{tmp_path}: resnet110/vit_tiny/at was left out: at: has no maps',
      f'{tmp_path}: resnet110 -> resnet8: not begun: kd with seed 67; dih with seed 30, 67',
      f'{tmp_path}: my.nets:A/b -> resnet8: not begun: ce with seed 1, 2',
      f'{home}/resnet8/seed67/student/ce: is not finished, there is no result.json'])
  (tmp_path / 'my.nets.A.b/resnet8/seed1/student/ce').mkdir(parents=True)
  assert f'{tmp_path}: my.nets:A/b -> resnet8: not begun: ce with seed 2' in found(tmp_path)[1]


@pytest.mark.parametrize('content, expected', [
    ('[', 'is not JSON'), ([1], "'pairs' is missing"),
    ([{'pairs': 3, 'seeds': []}], "'pairs' is 3, and must be [teacher, student, methods] of each"),
    ([{'pairs': [['a', 'b', 'c']], 'seeds': []}], "'pairs' is [['a', 'b', 'c']], and must be"),
    ([{'pairs': [], 'seeds': 1}], "'seeds' is 1, and must be of type list")])
def test_a_broken_sweep_is_named_and_its_runs_are_read(tmp_path, content, expected):
  swept(tmp_path, 'ce', seeds=(30,))
  write(tmp_path / 'sweep.json', content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 30)] and problem.startswith(f'{tmp_path}/sweep.json: {expected}')


def test_a_run_that_has_no_student_yet_is_named_beside_one_that_has(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b')
  assert found(tmp_path) == ([('ce', 3)], [f'{tmp_path}/b: holds no student'])


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
      f"{path}: 'members' is missing; the pictures of this cohort are left out"]


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
