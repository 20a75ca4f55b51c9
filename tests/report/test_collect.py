"""Finished students found on disk, in runs and sweeps."""
import json
import os
import shutil
import subprocess
import sys

import pytest

from kdih.report.aggregate import compare
from kdih.report.collect import collect
from tests.helpers.made_results import heads, result
from tests.helpers.made_workdirs import found, manifest, single, student, swept, write
from tests.helpers.runs import ROOT


def test_a_run_is_read(tmp_path):
  single(tmp_path / 'w', 'ce', 'kd')
  (ce, kd), problems = collect([tmp_path / 'w'])
  assert problems == []
  assert (ce.data, ce.teacher, ce.student, ce.method, ce.seed) == (
      'cifar100', 'resnet110', 'resnet8', 'ce', 3)
  assert kd.path == str(tmp_path / 'w') and kd.method == 'kd' and kd.protocol == ce.protocol
  assert kd.result == result(0.6, method=dict(kind='kd'), fingerprint='f')
  assert kd.teacher_result['fingerprint'] == 't' and kd.heads_result == heads('stage1')
  assert kd.provenance == ('command: unknown', 'git commit: unknown', 'devices: unknown (unknown)',
                           'versions: unknown')


def test_provenance_comes_from_the_manifest(tmp_path):
  single(tmp_path, 'ce')
  path = tmp_path / 'manifest.json'
  write(path, {**json.loads(path.read_text()), 'command': 'python -m kdih.main', 'platform': 'gpu',
               'git_commit': 'abc', 'devices': ['H', 'I'], 'versions': {'jax': '1', 'flax': '2'}})
  (run,), _ = collect([tmp_path])
  assert run.provenance == ('command: python -m kdih.main', 'git commit: abc',
                            'devices: H, I (gpu)', 'versions: jax 1, flax 2')


def test_provenance_comes_from_the_result_if_it_has_one(tmp_path):
  """The manifest describes the last command, which may have added another method."""
  single(tmp_path, 'ce', 'kd')
  path = tmp_path / 'student' / 'kd' / 'result.json'
  made_by = {'command': 'mine', 'git_commit': 'abc', 'devices': ['H'], 'platform': 'gpu',
             'versions': {'jax': '1'}}
  write(path, {**json.loads(path.read_text()), 'made_by': made_by})
  ce, kd = collect([tmp_path])[0]
  assert ce.provenance[0] == 'command: unknown'
  assert kd.provenance == ('command: mine', 'git commit: abc', 'devices: H (gpu)',
                           'versions: jax 1')


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


def test_assistants_and_preparations_are_not_students(tmp_path):
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
    ('compute.cache', 'all_views', True), ('compute.cache', 'views:8', False),
    ('compute.cache_taps', True, False), ('compute.accumulate', 4, False),
    ('compute.teacher_dtype', 'bfloat16', False), ('compute.teacher_dtype', 'float32', True),
    ('compute.fold_batch_norm', False, True), ('compute.cache_place', 'disk', True),
])
def test_the_fields_of_a_protocol(tmp_path, name, value, same):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce', **{name: value})
  runs, _ = collect([tmp_path / 'a', tmp_path / 'b'])
  assert (len({run.protocol for run in runs}) == 1) == same


@pytest.mark.parametrize('recorded', [True, False])
def test_other_options_of_the_parts_of_a_sum_are_other_settings(tmp_path, recorded):
  """Results of an earlier version lack the options of the parts; their manifests have them."""
  for name, alpha in (('a', 0.1), ('b', 0.5), ('c', 0.1)):
    seed = {'a': 1, 'b': 2, 'c': 3}[name]
    manifest(tmp_path / name, seed, **{'methods.dih.alpha': alpha})
    parts = {'parts': {'dih': {'alpha': alpha}}} if recorded else {}
    student(tmp_path / name, 'dih_at', seed=seed, **parts)
  (pair,), problems = compare(collect([tmp_path])[0])
  assert [(row.method, row.seeds) for row in pair.rows] == [('dih_at', (1, 3))]
  assert problems[0].endswith('dih_at has other parts.dih.alpha for seed 2, left out')


def test_an_accepted_change_is_reported_and_is_another_protocol(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b')
  student(tmp_path / 'b', 'ce', seed=4, accepted=['data: 40 images of train were added'])
  runs, problems = collect([tmp_path])
  assert problems == [f'{tmp_path}/b/student/ce: was resumed although data: 40 images of train '
                      'were added']
  assert 'they differ in accepted' in compare(runs)[1][0]


def test_best_variables_that_were_lost_are_reported(tmp_path):
  single(tmp_path)
  student(tmp_path, 'ce', seed=4, best_lost={'step': 40, 'top1': 0.196})
  runs, problems = collect([tmp_path])
  assert len(runs) == 1
  assert problems == [f'{tmp_path}/student/ce: its best variables, of step 40 with val top-1 '
                      '19.60 %, were damaged; the best ones that were left count']


def test_the_protocol_comes_from_the_result_and_not_from_a_later_manifest(tmp_path):
  manifest(tmp_path, **{'student.train.length': 9.0, 'student.name': 'resnet20'})
  one = {'student.train.length': 5.0, 'student.name': 'resnet8', 'sync_batch_norm': False}
  student(tmp_path, 'ce', protocol=one)
  student(tmp_path, 'kd', protocol={**one, 'student.train.length': 9.0})
  runs, _ = collect([tmp_path])
  assert {run.student for run in runs} == {'resnet8'}
  protocols = [json.loads(run.protocol) for run in runs]
  assert [fields['student.train.length'] for fields in protocols] == [5.0, 9.0]
  assert protocols[0]['dtype'] == 'float32'  # Of a field that it did not have, the default.
  assert 'they differ in student.train.length' in compare(runs)[1][0]


@pytest.mark.parametrize(('taken', 'same'), [('', True), ('x/heads/variables', False)])
def test_heads_that_were_given_are_part_of_the_protocol(tmp_path, taken, same):
  """Heads that a run trained itself, by the same recipe, are not part of it."""
  for name, seed in (('a', 1), ('b', 2)):
    single(tmp_path / name, 'dih', seed=seed, **{'heads.variables': taken})
    write(tmp_path / name / 'heads/result.json', {**heads('stage1'), 'fingerprint': name})
  pairs, problems = compare(collect([tmp_path])[0])
  assert len(pairs) == (1 if same else 2)
  assert same or problems[0].endswith('they differ in heads')


@pytest.mark.parametrize(('folders', 'identities', 'apart'), [
    (('x', 'y'), (None, None), 'data.folder'), (('x', 'y'), (None, 'D'), 'data.folder'),
    (('x', 'x'), (None, 'D'), ''), (('x', 'y'), ('D', 'D'), ''), (('x', 'x'), ('D', 'E'), 'data')])
def test_images_of_an_earlier_version_are_known_by_their_folder(
    tmp_path, folders, identities, apart):
  for seed, (folder, data) in enumerate(zip(folders, identities, strict=True)):
    single(tmp_path / str(seed), seed=seed, **{'data.folder': folder})
    student(tmp_path / str(seed), 'ce', seed=seed, **({'identity': {'data': data}} if data else {}))
  pairs, problems = compare(collect([tmp_path])[0])
  assert len(pairs) == 1 + bool(apart)
  assert not apart or problems[0].endswith(f'they differ in {apart}')


def test_another_teacher_is_another_protocol_which_the_comparison_names(tmp_path):
  single(tmp_path / 'a', 'ce')
  single(tmp_path / 'b', 'ce', fingerprint='other')
  runs, problems = collect([tmp_path])
  assert len(runs) == 2 and problems == []
  assert [line.rsplit(maxsplit=1)[1] for line in compare(runs)[1]] == ['teacher']


def test_a_student_belongs_to_the_teacher_that_taught_it(tmp_path):
  """Teacher and heads were trained again after the first student; one student has no teacher."""
  single(tmp_path, **{'heads.variables': 'x/heads/variables'})
  write(tmp_path / 'heads/result.json', {**heads('stage1'), 'fingerprint': 'h'})
  for method, known in (('dih', {'variables': 'of old', 'heads': 'of old'}), ('kd', {}),
                        ('kd_matched', {'variables': 't', 'heads': 'h'})):
    student(tmp_path, method, identity={'teacher': known})
  (dih, *others), problems = collect([tmp_path])
  said = 'is not the one that taught some of its students'
  assert problems == [f'{tmp_path}/{phase}: {said}' for phase in ('teacher', 'heads')]
  assert (dih.teacher_result, dih.heads_result) == (None, None)
  for run in others:
    assert (run.teacher_result['fingerprint'], run.heads_result['fingerprint']) == ('t', 'h')
    assert dih.differences(run) == ['teacher', 'heads'] and not run.differences(others[0])


def test_runs_are_compared_if_one_does_not_record_its_teacher(tmp_path):
  """The first result was written by an earlier version, and its teacher's folder is gone."""
  single(tmp_path, 'ce')
  student(tmp_path, 'kd', identity={'teacher': {'variables': 't'}})
  shutil.rmtree(tmp_path / 'teacher')
  (pair,), problems = compare(collect([tmp_path])[0])
  assert [row.method for row in pair.rows] == ['ce', 'kd'] and problems == []


def test_results_are_read_without_jax_and_tensorflow():
  code = ('import sys; import kdih.report.collect, kdih.report.tables, kdih.cohort.analysis; '
          'print([name for name in ("jax", "tensorflow", "flax") if name in sys.modules])')
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                         env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert ended.stdout == '[]\n'
