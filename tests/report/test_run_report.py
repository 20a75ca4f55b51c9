"""The table, `report.md`, `results.json` and the pictures of runs, whole and in part."""
import json
import re

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from kdih.cohort import head_modules
from kdih.data.spec import DataSpec
from kdih.models import cost, taps
from kdih.phases import exported_variables, networks
from kdih.report import run_report
from kdih.runtime import digests, run_files
from kdih.runtime.workdir import Workdir, resolved
from tests.helpers.made_results import heads, read_png, result
from tests.helpers.runs import ROOT


class Net(nn.Module):
  """One Dense of `width` before the classifier."""

  width: int
  num_classes: int = 10

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    hidden = nn.relu(nn.Dense(self.width)(images.reshape(images.shape[0], -1)))
    return nn.Dense(self.num_classes)(hidden)


CONFIG = ml_collections.ConfigDict({
    'data': {'name': 'digits'}, 'seed': 3, 'teacher': {'name': 'net16', 'kwargs': {}},
    'student': {'name': 'net2', 'kwargs': {}, 'methods': ('ce', 'dih')}})
MODULES = networks.Networks(
    spec=DataSpec('digits', (4, 4, 1), 10), teacher=Net(16), student=Net(2),
    heads=head_modules.Heads(10), taps={'stage1': (4, 4, 1)}, methods={}, teacher_taps={},
    student_taps={}, assistants={}, validated=True)


def some_results() -> dict:
  return {'teacher': result(0.8), 'heads': heads('stage1', 'stage2'),
          'student': {'ce': result(0.66), 'dih': result(0.6875, 0.75)}}


def without_validation(results: dict) -> dict:
  return json.loads(json.dumps(results), object_hook=lambda d: {**d, 'val': None}
                    if 'val' in d else d)


def finish(run: Workdir, phase: str, content: dict, lines: int = 3, val: bool = True) -> None:
  """Writes the files of a finished phase, without its variables."""
  run.finish(phase, content)
  train = [{'step': 10 * i, 'train/loss': 2 / i, 'train/top1': 0.2 * i, 'examples_per_second': 9.0}
           for i in range(1, lines + 1)]
  validation = [{'step': 10, 'val/top1': 0.5, 'val/loss': 1.0}] if val else []
  (run.phase(phase) / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in train + validation))


def export(run: Workdir, phase: str, role: str, seed: int) -> None:
  """Finishes a phase, with variables that are all `seed`."""
  shapes = taps.abstract_variables(getattr(MODULES, role), (4, 4, 1))
  variables = jax.tree.map(lambda x: np.full(x.shape, seed, x.dtype), shapes)
  meta = {'model': exported_variables.describe_model(CONFIG, role, 10)}
  exported_variables.save(run.phase(phase) / 'variables', variables, meta)
  finish(run, phase, result(0.8 - 0.1 * seed, fingerprint=digests.of(variables)))


# The table.


def test_table_shows_every_number_aligned():
  assert run_report.table(some_results()).split('\n') == [
      '                test        test',
      '             top-1 %     top-1 %     test      val   test  agreement',
      '              (last)  (best val)  top-5 %  top-1 %   loss          %  parameters',
      'teacher        79.00       80.00    95.00    82.00  1.235          -       1,234',
      'head stage1    49.00       50.00    95.00    52.00  1.235      60.00         650',
      'head stage2    49.00       50.00    95.00    52.00  1.235      60.00         650',
      'cohort mean    69.00       70.00    95.00    72.00  1.235      90.00           -',
      'student ce     65.00       66.00    95.00    68.00  1.235          -       1,234',
      'student dih    67.75       68.75    95.00    70.75  1.235      75.00       1,234']


def test_table_without_validation_has_no_columns_about_it():
  lines = run_report.table(without_validation(some_results())).split('\n')
  assert lines[2].split() == ['(last)', 'top-5', '%', 'loss', '%', 'parameters']
  assert lines[3].split() == ['teacher', '79.00', '95.00', '1.235', '-', '1,234']


def test_table_with_few_classes_has_no_top5():
  teacher = result(0.8)
  for split in ('val', 'test_last', 'test_best_val'):
    del teacher[split]['top5']
  text = run_report.table({'teacher': teacher})
  assert 'top-1' in text and 'top-5' not in text


def test_table_of_heads_alone_takes_the_teacher_from_the_cohort():
  lines = run_report.table({'heads': heads('stage1')}).split('\n')
  assert [line[:13].strip() for line in lines[3:]] == ['teacher', 'head stage1', 'cohort mean']
  assert '80.00' in lines[3]


def test_table_keeps_the_order_of_depth():
  lines = run_report.table({'heads': heads('Conv_0', 'Block_2', 'Block_10')}).split('\n')
  assert [line.split()[1] for line in lines if line.startswith('head')] == [
      'Conv_0', 'Block_2', 'Block_10']


HOSTILE = '\x1b[31m<img src=x onerror=alert(1)>|a\n# H'


def test_names_are_text_on_the_terminal_and_in_markdown(tmp_path):
  run = Workdir(tmp_path)
  finish(run, 'heads', heads(HOSTILE))
  finish(run, 'student/<b>|', result(0.6, accepted=[f'data: {HOSTILE}'],
                                     best_lost={'step': 3, 'top1': 0.5}))
  results = run_report.write(run, MODULES, CONFIG)
  terminal = run_report.table(results)
  assert 'head \ufffd[31m<img src=x onerror=alert(1)>|a # H ' in terminal
  assert all(line.isprintable() for line in terminal.split('\n'))
  text = text_of(run)
  assert all(line.isprintable() for line in text.split('\n')) and '\n# H' not in text
  assert not re.search(r'(?<!\\)<', text)
  assert {len(re.findall(r'(?<!\\)\|', line)) for line in text.split('\n')
          if line.startswith('|')} == {9, 5}  # Accuracy and training.
  assert text.count('onerror') == 2  # The member, and the change that was accepted.


def test_table_of_nothing():
  assert run_report.table({}) == 'no phase is finished yet'


# What `write` leaves in a workdir.


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A workdir with all phases, variables and a report, and the results that `write` returned."""
  run = Workdir(tmp_path_factory.mktemp('whole'))
  run.open(resolved(CONFIG))
  export(run, 'teacher', 'teacher', 0)
  finish(run, 'heads', heads('stage1'))
  export(run, 'student/ce', 'student', 1)
  export(run, 'student/dih', 'student', 2)
  return run, run_report.write(run, MODULES, CONFIG)


def text_of(run: Workdir) -> str:
  return (run.path / 'report.md').read_text()


def row(text: str, name: str) -> list[str]:
  """The cells of the one Markdown row called `name`."""
  rows = [[cell.strip() for cell in line.strip('|').split('|')]
          for line in text.split('\n') if line.startswith('|')]
  found, = (cells for first, *cells in rows if first == name)
  return found


def test_results_json_holds_what_is_returned(whole):
  run, results = whole
  assert json.loads((run.path / 'results.json').read_text()) == results
  assert {key: results[key] for key in ('teacher', 'heads', 'student')} == run.results()


def test_compression_measures_the_exported_variables(whole):
  run, results = whole
  teacher, student = results['compression']['teacher'], results['compression']['student']
  assert teacher['parameters'] == 16 * 16 + 16 + 16 * 10 + 10
  assert student['parameters'] == 16 * 2 + 2 + 2 * 10 + 10
  assert teacher['flops'] == 2 * (16 * 16 + 16 * 10) + 16 + 16 + 10  # The relu is one each.
  assert teacher['bytes'] == cost.bytes_on_disk(run.path / 'teacher' / 'variables') > 442 * 4
  assert student['bytes'] == cost.bytes_on_disk(run.path / 'student' / 'ce' / 'variables')
  assert teacher['fingerprint'] == results['teacher']['fingerprint']
  assert student['fingerprint'] == results['student']['ce']['fingerprint']


def test_report_compares_teacher_and_student(whole):
  run, results = whole
  text, costs = text_of(run), results['compression']
  assert text.startswith('# digits: net16 → net2\n')
  assert row(text, 'parameters') == ['442', '64', '14.5']
  assert row(text, 'FLOPs of one image') == ['874', '118', '13.5']
  assert row(text, 'bytes on disk')[:2] == [
      f'{costs[role]["bytes"]:,}' for role in ('teacher', 'student')]
  assert row(text, 'test top-1 % (best val), ce') == ['80.00', '70.00', '87.5']
  assert row(text, 'test top-1 % (best val), dih') == ['80.00', '60.00', '75.0']
  assert row(text, 'student/dih') == ['78,200', '61.2', '2,412']


def test_report_has_the_table_of_the_terminal(whole):
  run, results = whole
  text = text_of(run).split('## Compression')[0]
  for line in run_report.table(results).split('\n')[3:]:
    name, *cells = line.rsplit(maxsplit=7)
    assert row(text, name) == cells
  assert '- test top-1 % (best val): ' in text and '- agreement %: ' in text


def test_report_has_its_provenance(whole):
  run, _ = whole
  text, manifest = text_of(run), json.loads((run.path / 'manifest.json').read_text())
  assert '- seed: 3\n' in text
  assert f'- git commit: {manifest["git_commit"]}\n' in text
  assert f'jax {jax.__version__}' in text and manifest['devices'][0] in text
  assert f'- command: `{manifest["command"]}`\n' in text


def test_report_shows_pictures_that_exist(whole):
  run, _ = whole
  for name in ('accuracy_by_depth.png', 'training_curves.png'):
    assert f']({name})' in text_of(run)
    assert np.ptp(read_png(run.path / name)) == 1.0
  assert not list(run.path.glob('.*'))


def test_report_explains_the_losses_of_the_training_curves(whole):
  text = text_of(whole[0]).partition('](training_curves.png)')[2].partition('\n## ')[0]
  assert 'For the heads, it is the sum of the cross-entropies of all heads.' in text
  assert 'validation loss and validation accuracy are means over the heads.' in text


def copy_of(whole, tmp_path) -> Workdir:
  """A workdir with the results of `whole`, without variables."""
  run = Workdir(tmp_path)
  for phase in ('teacher', 'student/ce', 'student/dih'):
    run.finish(phase, whole[0].result(phase))
  return run


def test_compression_is_not_measured_twice(whole, tmp_path):
  run, known = copy_of(whole, tmp_path), {**whole[1]['compression'], 'device': 'another'}
  run_files.write(run.path / 'results.json', {'compression': known})
  assert run_report.write(run, MODULES, CONFIG)['compression'] == known


def test_compression_outlives_a_method_that_is_added(whole, tmp_path):
  run, known = copy_of(whole, tmp_path), whole[1]['compression']
  run_files.write(run.path / 'results.json', {'compression': known})
  finish(run, 'student/at', result(0.5, fingerprint='new'))
  assert run_report.write(run, MODULES, CONFIG)['compression'] == known


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_compression_of_other_variables_is_measured_anew(whole, tmp_path, role):
  run = Workdir(tmp_path)
  export(run, 'teacher', 'teacher', 0)
  export(run, 'student/ce', 'student', 1)
  known = json.loads(json.dumps(whole[1]['compression']))
  known['device'], known[role]['fingerprint'] = 'another', 'other'
  run_files.write(run.path / 'results.json', {'compression': known})
  results = run_report.write(run, MODULES, CONFIG)
  assert results['compression']['device'] == jax.devices()[0].device_kind
  assert results['compression'][role]['fingerprint'] != 'other'


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_costs_and_losses_that_are_unknown_are_left_out(whole, tmp_path, role):
  run, known = copy_of(whole, tmp_path), json.loads(json.dumps(whole[1]['compression']))
  known[role]['flops'] = None
  run_files.write(run.path / 'results.json', {'compression': known})
  student = run.result('student/ce')
  student['test_best_val']['loss'], student['flops'] = None, None
  run.finish('student/ce', student)
  run_report.write(run, MODULES, CONFIG)
  text = text_of(run)
  assert '| FLOPs of one image' not in text and '| bytes on disk' in text
  assert row(text.split('## Compression')[0], 'student ce')[4] == '-'


# Runs of which something is missing.


PARTS = {
    'nothing': ({}, (), ('Accuracy', 'Compression', 'Training', '![')),
    'teacher': ({'teacher': result(0.8)}, ('Accuracy', 'Training', '![Training curves]'),
                ('Compression', '![Accuracy', 'head ', 'student ', 'cohort mean')),
    'heads': ({'heads': heads('stage1')},
              ('head stage1', '![Accuracy', 'For the heads, it is the sum'),
              ('Compression',)),
    'student': ({'student/ce': result(0.6)}, ('student ce',), ('Compression', 'teacher |')),
    'no students': ({'teacher': result(0.8), 'heads': heads('stage1')}, ('cohort mean',),
                    ('Compression', '| student')),
    'no validation': (without_validation({'teacher': result(0.8)}), ('test top-1 % (last)',),
                      ('validation', 'best val', 'val top-1')),
}


@pytest.mark.parametrize('part', PARTS)
def test_report_leaves_out_what_does_not_exist(tmp_path, part):
  phases, there, absent = PARTS[part]
  run = Workdir(tmp_path)
  for phase, content in phases.items():
    finish(run, phase, content, val=part != 'no validation')
  assert run_report.write(run, MODULES, CONFIG) == run.results()
  text = text_of(run)
  assert [words for words in there if words not in text] == []
  assert [words for words in absent if words in text] == []
  assert '- seed: 3' in text and 'git commit' not in text


def test_a_phase_that_was_loaded_has_no_curve(tmp_path):
  run = Workdir(tmp_path)
  run.finish('teacher', result(0.8, steps=0, seconds=0.0, examples_per_second=0.0))
  run_report.write(run, MODULES, CONFIG)
  assert row(text_of(run).split('## Training')[1], 'teacher') == ['0', '0.0', '0']
  assert not (run.path / 'training_curves.png').exists()


def test_the_tables_in_the_documents_are_those_that_the_results_give():
  root = ROOT
  readme = (root / 'README.md').read_text(encoding='utf-8')
  digits = run_files.read(root / 'launch/results/digits.json', run_files.Results)
  assert f'```text\n{run_report.table(digits)}\n```' in readme
  readme = (root / 'launch/results/README.md').read_text(encoding='utf-8')
  path = 'launch/results/cifar100_laptop.json'
  laptop = run_report.markdown_table(run_files.read(root / path, run_files.Results))
  assert f'<!-- {path} -->\n{laptop}\n<!-- end -->' in readme
