"""The harness itself: it sees what it should."""
import json
import os
import random

import pytest

from tests.chaos import faults, harms, remains, summary  # noqa: F401  Faults are known by their import.
from tests.helpers.runs import ROOT

WHOLE: remains.Remains = {
    'files': {'work': True, 'work/result.json': True},
    'variables': {'work/variables': {'w': 'a1'}},
    'metrics': {'work/metrics.jsonl': [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': 0.25}]}}


@pytest.mark.parametrize(('what', 'content', 'expected'), [
    ('files', {'work': True}, 'missing: work/result.json'),
    ('files', {**WHOLE['files'], 'work/.x.tmp': True}, 'left over: work/.x.tmp'),
    ('variables', {}, 'variables: work/variables is missing'),
    ('variables', {'work/variables': {'w': 'b2'}},
     'variables: work/variables w is b2 where a1 was'),
    ('metrics', {'work/metrics.jsonl': [*WHOLE['metrics']['work/metrics.jsonl'], {'step': 2}]},
     "metrics: work/metrics.jsonl lacks [] and has [{'step': 2}] instead"),
    ('metrics', {'work/metrics.jsonl': WHOLE['metrics']['work/metrics.jsonl'][::-1]},
     'metrics: work/metrics.jsonl has')])
def test_each_difference_is_named(what, content, expected):
  assert remains.differences(WHOLE, WHOLE) == []
  found, = remains.differences(WHOLE, {**WHOLE, what: content})
  assert found.startswith(expected)


def test_what_differs_each_time_is_left_out(tmp_path):
  folder = tmp_path / 'work'
  folder.mkdir()
  (folder / 'result.json').write_text('{"top1": 0.5, "seconds": 1.5, "made_by": {"python": "3"}}')
  (folder / 'runs.csv').write_text('method,top1,seconds\nkd,0.5,1.5\n')
  (folder / '.lock').touch()
  found = remains.collect(tmp_path)
  assert found['results'] == {'work/result.json': {'top1': 0.5}}
  assert found['tables'] == {'work/runs.csv': ["{'method': 'kd', 'top1': '0.5'}"]}
  assert set(found['files']) == {'work', 'work/result.json', 'work/runs.csv'}


@pytest.mark.parametrize('text', [
    '-', 'event=17', 'half=3+120', 'after=4+0.5', 'time=0+1.25', 'read=EIO+3', 'stat=EIO+3',
    'files=5+1+2', 'space=40', 'locks=ENOSYS;event=17', 'clock=-3600'])
def test_a_harm_is_made_again_from_its_text(text):
  harm = harms.parse(text)
  assert str(harm) == text
  assert harm.codes == ({0, 1, 2} if '=' in text and text.split('=')[0] in (
      'read', 'stat', 'files', 'space', 'locks') else {0})


def test_a_kill_that_is_drawn_is_made_again_from_its_text():
  for seed in range(50):
    harm = harms.Kill.draw(random.Random(seed), changes=100, seconds=3)
    assert str(harms.parse(str(harm))) == str(harm)


def test_a_file_event_happens_before_the_operation(tmp_path):
  """In a process of its own: a hook stays."""
  pid = os.fork()
  if not pid:
    from tests.chaos import file_events
    seen = []
    file_events.watch(str(tmp_path), lambda event: seen.append(
        (*event, event.does, os.path.lexists(tmp_path / 'x'))))
    (tmp_path / 'x').write_text('1')
    (tmp_path / 'x').rename(tmp_path / 'y')
    (tmp_path / 'y').read_text()
    (tmp_path / 'y').exists()
    (tmp_path / 'y').unlink()
    (tmp_path.parent / 'elsewhere').touch()
    os._exit(seen != [
        ('write', 'x', 'change', False), ('os.rename', 'x', 'change', True),
        ('read', 'y', 'read', False), ('stat', 'y', 'stat', False),
        ('os.remove', 'y', 'change', False)])
  assert os.waitpid(pid, 0)[1] == 0


def test_the_table_of_the_documents_is_that_of_the_summary():
  path = 'launch/results/chaos.json'
  text = (ROOT / 'launch/results/README.md').read_text()
  assert f'<!-- {path} -->\n{summary.table(ROOT / path)}\n<!-- end -->' in text


def test_the_table_counts_what_ended_otherwise(tmp_path):
  outcomes = {'sweep': {'as uninterrupted': 1200}, 'phases': {'as uninterrupted': 2, 'hangs': 1}}
  (tmp_path / 'chaos.json').write_text(json.dumps({'outcomes': {'kills': outcomes}}))
  row = summary.table(tmp_path / 'chaos.json').splitlines()[2]
  assert [cell.strip() for cell in row.split('|')[1:-1]] == [
      'kills', 'phases, sweep', '1,203', '1']
