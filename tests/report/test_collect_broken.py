"""Damaged and unfinished runs and sweeps are reported, and all other runs are read."""
import errno
import json
import os

import pytest

from kdih import errors
from kdih.report import __main__ as report
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


def missing(key: str) -> str:
  """The reason for a file that lacks `key`."""
  group, _, name = key.rpartition('.')
  return f'Object missing required field `{name}`' + (f' - at `$.{group}`' if group else ')')


GOOD = result(0.6, method=dict(kind='kd'))
BROKEN = [
    ('', 'Input data was truncated'), ('{"seed": 3', 'Input data was truncated'),
    ('{"seed": 3,}', 'JSON is malformed: trailing comma in object (byte 11)'),
    ('[]', 'Expected `object`, got `array`'), ('null', 'Expected `object`, got `null`'),
    *((without(GOOD, key), missing(key)) for key in (
        'test_last.top1', 'test_best_val.top1', 'val', 'val.top1', 'seed', 'parameters',
        'fingerprint', 'method', 'method.kind', 'test_last', 'steps')),
    ({**GOOD, 'seed': '3'}, 'Expected `int`, got `str` - at `$.seed`'),
    ({**GOOD, 'parameters': None}, 'Expected `int`, got `null` - at `$.parameters`'),
    ({**GOOD, 'parameters': -1}, 'Expected `int` >= 0 - at `$.parameters`'),
    ({**GOOD, 'flops': 1.5}, 'Expected `int | null`, got `float` - at `$.flops`'),
    ({**GOOD, 'test_last': {'top1': 0.5, 'agreement': 'x'}},
     'Expected `float`, got `str` - at `$.test_last.agreement`'),
    ({**GOOD, 'val': {'top1': 7}}, 'Expected `float` <= 1.0 - at `$.val.top1`'),
    ({**GOOD, 'accepted': None}, 'Expected `array`, got `null` - at `$.accepted`'),
    ({**GOOD, 'accepted': 'all'}, 'Expected `array`, got `str` - at `$.accepted`'),
    ('[' * 20000, 'its content is nested over 50 deep'),
    ('[' * 60 + ']' * 60, 'its content is nested over 50 deep'),
    ('{"seed": 1' + '0' * 5000 + '}', 'Integer value out of range - at `$'),
    ('{"seed": 1e999}', 'Number out of range'), ('{"seed": NaN}', 'JSON is malformed: invalid '),
    ('{"seed": "\\ud800"}', 'Input data was truncated'),  # Half of a character.
    *(({**GOOD, 'test_last': {'top1': bad}}, f'Expected `float`{expected}')
      for bad, expected in ((61.2, ' <= 1.0 - at `$.test_last.top1`'), (None, ', got `null`'),
                            (-0.1, ' >= 0.0 - at `$.test_last.top1`'), (True, ', got `bool`'))),
]


@pytest.mark.parametrize('content, expected', BROKEN)
def test_a_broken_result_is_reported_and_all_others_are_read(tmp_path, content, expected):
  single(tmp_path, 'ce')
  path = tmp_path / 'student/kd/result.json'
  write(path, content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)] and problem.startswith(f'{path} is damaged ({expected}')
  assert problem.endswith('; restore it from a copy, or remove it to have it made again')


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
    (changed(ANALYSED, {}, 'members', 'stage1'),
     'Object missing required field `val` - at `$.members[...]`'),
    (changed(ANALYSED, [], 'analysis'), 'Expected `object`, got `array` - at `$.analysis`'),
    (changed(ANALYSED, {}, 'analysis'),
     'Object missing required field `members` - at `$.analysis`'),
    (changed(ANALYSED, {'x.y?': {'entropy': 1.0, 'ece': 0.5}}, 'analysis', 'members'),
     '`agreement.names` must be the names of `members` - at `$.analysis`'),
    (changed(ANALYSED, {'members': {'x.y?': {'entropy': 1.0, 'ece': 0.5}}}, 'analysis'),
     '`analysis.members` must be names of `members`'),
    (changed(ANALYSED, {'final': {'ece': 0.1}}, 'analysis', 'members'),
     'Object missing required field `entropy` - at `$.analysis.members[...]`'),
    (changed(ANALYSED, -1.0, 'analysis', 'members', 'final', 'entropy'),
     'Expected `float` >= 0.0 - at `$.analysis.members[...].entropy`'),
    (changed(ANALYSED, 1.7e308, 'analysis', 'members', 'final', 'entropy'),
     'Expected `float` <= 100.0 - at `$.analysis.members[...].entropy`'),
    (changed(ANALYSED, 1.5, 'analysis', 'members', 'final', 'ece'),
     'Expected `float` <= 1.0 - at `$.analysis.members[...].ece`'),
    (changed(ANALYSED, ['final'], 'analysis', 'agreement', 'names'),
     '`matrix` must have 1 rows of 1 fractions - at `$.analysis.agreement`'),
    (changed(ANALYSED, [[1.0]], 'analysis', 'agreement', 'matrix'),
     '`matrix` must have 4 rows of 4 fractions - at `$.analysis.agreement`'),
    (changed(ANALYSED, [[1, 1, 1, 2]] * 4, 'analysis', 'agreement', 'matrix'),
     'Expected `float` <= 1.0 - at `$.analysis.agreement.matrix[0][3]`'),
    (changed(ANALYSED, {'final': 0.5}, 'analysis', 'without'),
     'Object missing required field `none` in `without` - at `$.analysis`'),
    (changed(ANALYSED, {'none': 0.5, 'x': 'y'}, 'analysis', 'without'),
     'Expected `float`, got `str` - at `$.analysis.without[...]`'),
    (changed(ANALYSED, {'accuracy': [1.0]}, 'weights'),
     '`weights` must hold a number for each member, `accuracy` does not'),
]


@pytest.mark.parametrize('content, expected', BROKEN_HEADS)
def test_broken_heads_are_named_and_only_their_pictures_are_left_out(tmp_path, content, expected):
  single(tmp_path, 'ce')
  path = tmp_path / 'heads/result.json'
  write(path, content)
  (run,), (problem,) = collect([tmp_path])
  assert run.heads_result is None
  assert problem.startswith(f'{path} is damaged ({expected}')
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
  single(tmp_path, 'ce', **{'student.name': 'x\x02\ty'})
  (tmp_path / 'student/ce').rename(tmp_path / 'student/a\nb\x01\udcff')
  (tmp_path / 'student/c\nd').mkdir()
  (run,), (problem,) = collect([tmp_path])
  assert (run.method, run.student) == ('a b\ufffd\ufffd', 'x\ufffd y')
  assert problem == f'{tmp_path}/student/c d: is not finished, there is no result.json'


def test_bytes_that_are_not_text_are_reported(tmp_path):
  single(tmp_path, 'ce', 'kd')
  (tmp_path / 'student/kd/result.json').write_bytes(b'\xff\xfe{')
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)]
  assert problem.startswith(f'{tmp_path}/student/kd/result.json is damaged (JSON is malformed')


def test_a_result_that_is_a_folder_is_named(tmp_path):
  single(tmp_path, 'ce')
  (tmp_path / 'student/kd/result.json').mkdir(parents=True)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)] and problem.startswith(
      f'{tmp_path}/student/kd/result.json is damaged (it is not a file)')


def test_a_broken_failure_is_named(tmp_path):
  single(tmp_path, 'ce')
  write(tmp_path / 'student/kd/failure.json', {'time': 1.0})
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 3)] and problem.startswith(
      f'{tmp_path}/student/kd/failure.json is damaged ({missing("error")}')


@pytest.mark.parametrize('content, expected', [
    ('{', 'Input data was truncated'), ({}, missing('config')),
    ({'config': {'data': {'name': 3}}}, 'Expected `str`, got `int` - at `$.config.data.name`'),
    ({'config': {'data': {}}}, missing('config.data.name')),
    ('[]', 'Expected `object`, got `array`')])
def test_a_broken_manifest_leaves_out_its_students_alone(tmp_path, content, expected):
  single(tmp_path / 'a', 'ce', 'kd')
  single(tmp_path / 'b', 'ce', seed=4)
  write(tmp_path / 'a/manifest.json', content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 4)]
  assert problem.startswith(f'{tmp_path}/a/manifest.json is damaged ({expected}')
  assert problem.endswith('; its students are left out')


def sweep_of(*asked) -> list[dict]:
  """The content of `sweep.json` for these (teacher, student, methods, seeds)."""
  return [{'pairs': [list(pair)], 'seeds': list(seeds), 'left_out': {}, 'config': {}}
          for *pair, seeds in asked]


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


SWEEP, = sweep_of(('a', 'b', ['ce'], (1,)))


@pytest.mark.parametrize('content, expected', [
    ('[', 'Input data was truncated'), ([1], 'Expected `object`, got `int` - at `$[0]`'),
    ({}, 'Expected `array`, got `object`'),
    ([without(SWEEP, 'config')], 'Object missing required field `config` - at `$[0]`'),
    ([{**SWEEP, 'pairs': 3}], 'Expected `array`, got `int` - at `$[0].pairs`'),
    ([{**SWEEP, 'pairs': [['a', 'b', 'c']]}],
     'Expected `array`, got `str` - at `$[0].pairs[0][2]`'),
    ([{**SWEEP, 'pairs': [['a', '../..', ['c']]]}], '`pairs` holds a name that cannot be the name'),
    ([{**SWEEP, 'pairs': [['a', 'b', ['c/d']]]}], '`pairs` holds a method with a `/` in its name'),
    ([{**SWEEP, 'seeds': 1}], 'Expected `array`, got `int` - at `$[0].seeds`')])
def test_a_broken_sweep_is_named_and_its_runs_are_read(tmp_path, content, expected):
  swept(tmp_path, 'ce', seeds=(30,))
  write(tmp_path / 'sweep.json', content)
  runs, (problem,) = found(tmp_path)
  assert runs == [('ce', 30)]
  assert problem.startswith(f'{tmp_path}/sweep.json is damaged ({expected}')


def test_a_run_that_has_no_student_yet_is_named_beside_one_that_has(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b')
  assert found(tmp_path) == ([('ce', 3)], [f'{tmp_path}/b: holds no student'])


def test_a_missing_manifest_is_named(tmp_path):
  single(tmp_path / 'a', 'ce')
  (tmp_path / 'a/manifest.json').unlink()
  assert found(tmp_path) == ([], [f'{tmp_path}/a/manifest.json: is missing; its students are left '
                                  'out'])


def test_the_broken_teacher_of_a_sweep_is_named_once(tmp_path):
  swept(tmp_path, 'ce', 'kd')
  path = tmp_path / 'resnet110/teacher/result.json'
  write(path, without(result(0.75), 'fingerprint'))
  runs, (problem,) = found(tmp_path)
  assert runs == [] and problem.startswith(f'{path} is damaged ({missing("fingerprint")}')
  assert problem.endswith('; its students are left out')


def test_broken_heads_and_an_unfinished_teacher_are_named_and_nothing_is_left_out(tmp_path):
  swept(tmp_path, 'ce')
  path = tmp_path / 'resnet110/heads/result.json'
  write(path, result(0.7))
  (tmp_path / 'resnet110/teacher/result.json').unlink()
  runs, problems = collect([tmp_path])
  assert [(run.seed, run.teacher_result, run.heads_result) for run in runs] == [
      (30, None, None), (50, None, None)]
  assert problems[0] == f'{tmp_path}/resnet110/teacher: is not finished, there is no result.json'
  assert problems[1].startswith(f'{path} is damaged ({missing("members")}')


def test_the_same_run_with_other_numbers_is_named_and_the_first_is_taken(tmp_path):
  single(tmp_path / 'a', 'ce', 'kd', top1=0.6)
  single(tmp_path / 'b', 'ce', top1=0.7)
  single(tmp_path / 'c', 'kd', top1=0.6)
  runs, problems = collect([tmp_path])
  assert [(run.path, run.method) for run in runs] == [
      (f'{tmp_path}/a', 'ce'), (f'{tmp_path}/a', 'kd')]
  assert problems == [
      f'{tmp_path}/b: ce with seed 3 has other numbers than in {tmp_path}/a, under the same '
      'protocol; the numbers of the latter count']


def test_a_score_that_one_of_two_runs_lacks_is_no_difference(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce')
  path = tmp_path / 'b/student/ce/result.json'
  content = json.loads(path.read_text())
  write(path, {**content, 'test_last': {**content['test_last'], 'agreement': 0.5}})
  runs, problems = collect([tmp_path])
  assert len(runs) == 1 and problems == []


def test_folders_that_hold_nothing_are_named(tmp_path):
  single(tmp_path / 'w')
  (tmp_path / 'file').write_text('')
  assert found(tmp_path / 'w', tmp_path / 'no', tmp_path / 'file') == ([], [
      f'{tmp_path}/w: holds no student', f'{tmp_path}/no: there is no such folder',
      f'{tmp_path}/file: there is no such folder'])


def refuse(monkeypatch, name, path, number):
  """Lets a function of `os` fail at a path."""
  real = getattr(os, name)

  def fail(asked='.', *args, **kwargs):
    if str(asked) == str(path):
      raise OSError(number, os.strerror(number), str(path))
    return real(asked, *args, **kwargs)

  monkeypatch.setattr(os, name, fail)


RUN = 'resnet110/resnet8/seed30'


@pytest.mark.parametrize('name, function', [
    ('sweep.json', 'stat'), ('resnet110/teacher/result.json', 'stat'), (RUN, 'scandir'),
    (f'{RUN}/manifest.json', 'stat'), (f'{RUN}/student', 'listdir'), (f'{RUN}/student/kd', 'stat'),
    (f'{RUN}/student/kd/result.json', 'stat'), ('', 'stat')])
def test_what_cannot_be_read_now_is_not_left_out(tmp_path, monkeypatch, name, function):
  swept(tmp_path, 'ce', 'kd')
  with monkeypatch.context() as patch:
    refuse(patch, function, tmp_path / name, errno.ESTALE)
    with pytest.raises(errors.UnreadableError) as raised:
      collect([tmp_path])
  assert str(raised.value) == (f'{tmp_path / name} cannot be read (Stale file handle); make it '
                               'readable, or run the same command again')
  assert len(found(tmp_path)[0]) == 4


def test_a_report_of_which_a_file_cannot_be_read_now_is_not_written(
    tmp_path, monkeypatch, capsys):
  swept(tmp_path, 'ce', 'kd')
  path = tmp_path / RUN / 'student/kd/result.json'
  refuse(monkeypatch, 'stat', path, errno.ESTALE)
  assert report.main(['kdih.report', str(tmp_path)]) == 2
  assert capsys.readouterr().err == (f'kdih: {path} cannot be read (Stale file handle); make it '
                                     'readable, or run the same command again\n')
  assert not (tmp_path / 'comparison').exists()


@pytest.mark.parametrize('function, number', [
    ('scandir', errno.EACCES), ('access', errno.EACCES), ('scandir', errno.ENOENT)])
def test_a_folder_that_this_user_may_not_open_or_is_removed_is_named_and_all_others_are_read(
    tmp_path, monkeypatch, function, number):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce', seed=4)
  if function == 'access':  # The superuser may open everything.
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path / 'b')
  else:
    refuse(monkeypatch, function, tmp_path / 'b', number)
  assert found(tmp_path) == ([('ce', 3)],
                             [f'{tmp_path}/b: cannot be read ({os.strerror(number)})'])
