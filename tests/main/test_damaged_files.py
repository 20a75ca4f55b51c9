"""Damaged and made-up files: reports name them, exported variables are refused, in a line."""
import json
import os
import random
import shutil

import pytest
from hypothesis import given, strategies as st

from kdih import errors, main
from kdih.data.spec import DataSpec
from kdih.phases import exported_variables, networks
from kdih.report import __main__ as report, aggregate, collect, findings, tables
from kdih.runtime import digests as digests_lib
from kdih.training import orbax_files
from tests.helpers.damage import contents, empty, files, flip_a_bit, places, truncate
from tests.helpers.fuzzing import JSON, times
from tests.helpers.made_pairs import heads as analysed_heads
from tests.helpers.made_results import heads, result
from tests.helpers.made_workdirs import swept, write
from tests.helpers.runs import read_config
from tests.helpers.slow import slow

MODEL = 'tests.helpers.tiny_nets:TinyNet'
RESULT_FILES = ('sweep.json', 'resnet110/manifest.json', 'resnet110/teacher/result.json',
                'resnet110/heads/result.json', 'resnet110/resnet8/seed30/manifest.json',
                'resnet110/resnet8/seed30/student/ce/result.json',
                'resnet110/resnet8/seed50/student/kd/result.json')


def replaced(content, path, value):
  if not path:
    return value
  copy = content.copy()
  copy[path[0]] = replaced(content[path[0]], path[1:], value)
  return copy


def changed_file(text, where, value, cut):
  """The text of a JSON file with one value replaced, or with a piece cut out."""
  if cut:
    start = int(where * len(text))
    return text[:start] + text[start + cut:]
  content = json.loads(text)
  paths = list(places(content))
  return json.dumps(replaced(content, paths[int(where * (len(paths) - 1))], value))


WHERE = st.floats(0, 1, exclude_max=True)
CUT = st.sampled_from([0, 0, 0, 1, 7, 10**6])


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  folder = swept(tmp_path_factory.mktemp('sweep'), 'ce', 'kd')
  write(folder / 'resnet110/heads/result.json',
        {**heads('stage1', 'stage2', 'stage3'), **analysed_heads(4)})
  return folder


@pytest.mark.parametrize('name', RESULT_FILES)
def test_a_comparison_of_changed_files_ends_without_a_traceback(sweep, name):
  path = sweep / name
  text = path.read_text()

  @times(20, 300)
  @given(WHERE, JSON, CUT)
  def try_it(where, value, cut):
    path.write_text(changed_file(text, where, value, cut))
    runs, problems = collect.collect([sweep])
    pairs, more = aggregate.compare(runs)
    assert all(line.isprintable() for line in (*problems, *more))
    for pair in pairs:
      assert all((tables.markdown(pair), tables.latex(pair), list(findings.findings(pair)) or 1))
    assert all((tables.csv_of_pairs(pairs), tables.csv_of_runs(runs)))

  try:
    try_it()
  finally:
    path.write_text(text)
  assert len(collect.collect([sweep])[0]) == 4


@pytest.mark.slow
def test_a_whole_report_of_changed_files_ends_without_a_traceback(sweep, tmp_path, capsys):
  @times(4, 40)
  @given(st.sampled_from(RESULT_FILES), WHERE, JSON, CUT)
  def try_it(name, where, value, cut):
    text = (sweep / name).read_text()
    try:
      (sweep / name).write_text(changed_file(text, where, value, cut))
      assert report.main(['report', str(sweep), f'--output={tmp_path}/out']) in (0, 2)
    finally:
      (sweep / name).write_text(text)
    assert 'Traceback' not in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {'out'}

  try_it()


RESULTS = {'teacher': result(0.8), 'heads': heads('stage1'), 'student': {'ce': result(0.6, 0.7)}}


@times(100, 3000)
@given(WHERE, JSON, CUT)
def test_a_changed_results_file_is_printed_or_refused(tmp_path_factory, where, value, cut):
  path = tmp_path_factory.getbasetemp() / 'results.json'
  path.write_text(changed_file(json.dumps(RESULTS), where, value, cut))
  assert report.main(['report', str(path)]) in (0, 2)


@pytest.fixture(scope='module')
def built():
  config = read_config('unused', 'unused')
  return config, networks.build(config, DataSpec('digits', (8, 8, 1), 10))


@pytest.fixture(scope='module')
def loads(finished, built):
  """{phase: loads its exported variables from a folder}."""
  teacher = digests_lib.of(orbax_files.restore(finished / 'teacher' / 'variables'))
  return {'teacher': lambda path: exported_variables.load_teacher(path, *built)[0],
          'heads': lambda path: exported_variables.load_heads(path, built[1], teacher)[0],
          'student/dih': lambda path: exported_variables.load_model(path, MODEL)[1]}


def refused_or_whole(load, path, expected):
  """Loads; returns whether that was refused, by one line that names the folder."""
  try:
    assert digests_lib.of(load(path)) == expected
  except errors.ConfigError as error:
    said = str(error)
    assert '\n' not in said and repr(str(path)) in said
    return True
  return False


@pytest.mark.parametrize('damage', [
    flip_a_bit, *(slow(damage)
                  for damage in (truncate, empty, os.remove))])
@pytest.mark.parametrize('phase', ['teacher', 'heads', 'student/dih'])
def test_damaged_variables_are_refused_or_whole(finished, tmp_path, loads, phase, damage):
  whole = finished / phase / 'variables'
  expected = digests_lib.of(orbax_files.restore(whole))
  names = [path.relative_to(whole) for path in files(whole)]
  refused = set()
  for number, name in enumerate(names):
    path = shutil.copytree(whole, tmp_path / str(number))
    damage(path / name)
    before = contents(path)
    if refused_or_whole(loads[phase], path, expected):
      refused.add(name.name)
    assert contents(path) == before
  stored = {name.name for name in names if name.parent.name == 'd'}  # The arrays.
  assert stored & refused and 'metadata' in refused


@pytest.mark.slow
def test_variables_with_any_bit_flipped_are_refused_or_whole(finished, tmp_path, loads):
  whole = finished / 'teacher' / 'variables'
  expected, rng = digests_lib.of(orbax_files.restore(whole)), random.Random(0)
  refused = 0
  for number in range(400):
    path = shutil.copytree(whole, tmp_path / str(number))
    file = rng.choice([file for file in files(path) if file.stat().st_size])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    refused += refused_or_whole(loads['teacher'], path, expected)
    shutil.rmtree(path)
  assert refused > 100


def grow(path):
  os.truncate(path, 2**31)  # A hole, which takes no room on the disk.


def replace_by_a_pipe(path):
  path.unlink()
  os.mkfifo(path)


@pytest.mark.parametrize('damage', [grow, replace_by_a_pipe])
@pytest.mark.parametrize('name', ['variables/_METADATA', 'meta/metadata', '_CHECKPOINT_METADATA'])
def test_descriptions_of_any_size_and_pipes_are_refused_at_once(
    finished, tmp_path, loads, damage, name):
  path = shutil.copytree(finished / 'teacher' / 'variables', tmp_path / 'variables')
  damage(path / name)
  assert refused_or_whole(loads['teacher'], path, '')


def test_variables_that_are_half_deleted_are_refused(finished, tmp_path, loads):
  path = shutil.copytree(finished / 'teacher' / 'variables', tmp_path / 'variables')
  shutil.rmtree(path / 'variables')
  assert refused_or_whole(loads['teacher'], path, '')


@pytest.mark.slow
def test_lost_best_variables_are_named_by_log_result_and_report(tmp_path, digits_dir, capsys):
  config = read_config(tmp_path, digits_dir, '--config.phases=teacher',
                       '--config.teacher.train.learning_rate=30')  # The accuracy falls.
  whole, phase = main.run(config, tmp_path)['teacher'], tmp_path / 'teacher'
  (phase / 'result.json').unlink()  # As if the phase had not ended.
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  manifest['identity']['teacher'] = {}
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
  assert [path.name for path in (phase / 'checkpoints' / 'best').iterdir()] == ['2']
  shutil.rmtree(phase / 'checkpoints' / 'best' / '2' / 'variables')
  result = main.run(config, tmp_path)['teacher']
  assert 'the best variables, of step 2, are lost' in capsys.readouterr().err
  assert result['best_lost'] == {'step': 2, 'top1': whole['val']['top1']}
  assert result['val']['top1'] < whole['val']['top1']
  assert (f'- teacher: those of step 2, with a validation accuracy of '
          f'{100 * whole["val"]["top1"]:.2f} %') in (tmp_path / 'report.md').read_text()


def test_a_made_up_description_is_refused_or_fits(finished, tmp_path, loads):
  """One with digests that are right, as whoever made it might give it."""
  path = shutil.copytree(finished / 'student' / 'dih' / 'variables', tmp_path / 'variables')
  file = path / 'meta' / 'metadata'
  meta = json.loads(file.read_text())
  expected = digests_lib.of(orbax_files.restore(path))

  @times(30, 400)
  @given(WHERE, JSON)
  def try_it(where, value):
    described = {name: value for name, value in meta.items() if name != 'digests'}
    described = {'model': described['model'], 'data': described['data']}
    paths = list(places(described))[1:]
    made_up = replaced(described, paths[int(where * (len(paths) - 1))], value)
    digests = {**meta['digests'], 'meta': digests_lib.of_json(made_up)}
    file.write_text(json.dumps({**made_up, 'digests': digests}))
    for load in loads.values():
      refused_or_whole(load, path, expected)

  try_it()
