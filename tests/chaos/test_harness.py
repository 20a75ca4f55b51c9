"""The harness itself: it sees what it should."""
import json
import os
import random
import signal
import subprocess

import PIL.Image
import pytest

from tests.chaos import (  # noqa: F401  Faults are known by their import.
  faults,
  file_events,
  harms,
  processes,
  remains,
  summary,
  tries,
)
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
  (folder / 'index.html').write_text('- command: kdih\n| teacher | 6 | 1.3 |\n- test terms: 2\n')
  (folder / 'curves.svg').write_text('<svg/>')
  found = remains.collect(tmp_path)
  assert found['results'] == {'work/result.json': {'top1': 0.5}}
  assert found['tables'] == {'work/runs.csv': ["{'method': 'kd', 'top1': '0.5'}"],
                             'work/index.html': ['- test terms: 2']}
  assert set(found['files']) == {'work', *(
      f'work/{name}' for name in ('result.json', 'runs.csv', 'index.html', 'curves.svg'))}
  (folder / 'curves.svg').write_text('<svg')
  difference, = remains.differences(found, remains.collect(tmp_path))
  assert difference.startswith('pictures: work/curves.svg is ')


def test_each_fault_of_a_report_is_named(tmp_path):
  (tmp_path / 'pictures').mkdir()
  for name, content in (
      ('report.md', '![Gain](pictures/gain.png)\n'), ('results.csv', 'a,b\n1,2\n'),
      ('runs.csv', 'a,b\n1,2\n'), ('tables.tex', '%\n'), ('index.html', '<html></html>\n'),
      ('pictures/gain.svg', '<svg/>')):
    (tmp_path / name).write_text(content)
  PIL.Image.new('L', (9, 9)).save(tmp_path / 'pictures/gain.png')
  assert remains.report_problems(tmp_path) == []
  (tmp_path / 'pictures/other.png').write_bytes(b'')
  (tmp_path / 'pictures/gain.svg').write_text('<svg>')
  (tmp_path / 'runs.csv').write_text('a,b\n1\n')
  (tmp_path / 'results.csv').write_text('')
  (tmp_path / 'index.html').write_text('<html>')
  (tmp_path / 'tables.tex').unlink()
  assert remains.report_problems(tmp_path) == [f'report: {line}' for line in (
      'left over: pictures/other.png', 'missing: tables.tex', 'broken: index.html',
      'broken: pictures/gain.svg', 'broken: pictures/other.png', 'broken: results.csv',
      'broken: runs.csv')]


SAID = {'said': 'kdih: the end\n', 'notes': (), 'seconds': 1}


@pytest.mark.parametrize(('text', 'code', 'expected'), [
    ('event=17', -signal.SIGKILL, 'as uninterrupted'),
    ('half=17+3', -signal.SIGXFSZ, 'as uninterrupted'),
    ('after=17+3', -signal.SIGALRM, 'as uninterrupted'),
    ('time=0+3', -signal.SIGKILL, 'as uninterrupted'),
    ('event=17', 0, 'as uninterrupted, unharmed'), ('read=EIO+3', 0, 'as uninterrupted, unharmed'),
    ('space=40', 1, 'as uninterrupted'), ('term=3', 130, 'exit code 130'),
    ('event=17', -signal.SIGSEGV, 'crash'), ('half=17+3', -signal.SIGKILL, 'crash'),
    ('-', -signal.SIGABRT, 'crash'), ('read=EIO+3', -signal.SIGSEGV, 'crash'),
    ('term=3', -signal.SIGTERM, 'crash')])
def test_a_process_ends_by_no_signal_but_that_of_a_kill(text, code, expected):
  outcome = tries.Outcome()
  harm = harms.parse(text)
  outcome.add(processes.Ended(code=code, **SAID), harm, harm.codes)
  assert str(outcome) == expected
  assert outcome.killed == (code < 0 and expected != 'crash')


def test_a_try_with_harms_that_did_not_happen_is_another_good_one():
  outcome = tries.Outcome()
  for text, notes in (('-', ()), ('change=EIO+1', ('happened change=EIO+1', 'write x')),
                      ('change=EIO+2', ('write x',))):
    outcome.add(processes.Ended(code=0, **{**SAID, 'notes': notes}), harms.parse(text),
                frozenset({0}))
  assert str(outcome) == 'as uninterrupted, harmed in part'


@pytest.mark.parametrize(('text', 'expected'), [
    ('term=2', 'SIGTERM'), ('interrupt=2', 'SIGINT'), ('change=EIO+2', 'OSError'),
    ('size=0', 'OSError'), ('term=5', 'nothing')])
def test_a_harm_happens_in_its_process(tmp_path, in_a_child, text, expected):
  def stop(number: int, _) -> None:
    raise RuntimeError(signal.Signals(number).name)

  def harmed() -> list:
    noted, harm = [], harms.parse(text)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    harm.start(noted.append)
    file_events.watch(str(tmp_path), harm.before)
    found = 'nothing'
    try:
      (tmp_path / 'x').write_text('1')
      (tmp_path / 'y').write_text('1')
    except (OSError, RuntimeError) as error:
      found = 'OSError' if isinstance(error, OSError) else str(error)
    return [*noted, found]

  happened = [f'happened {text}'] * (expected != 'nothing')
  assert in_a_child(harmed) == [*happened, expected]


@pytest.mark.parametrize('text', [
    '-', 'event=17', 'half=3+120', 'after=4+0.5', 'time=0+1.25', 'read=EIO+3', 'stat=EIO+3',
    'files=5+1+2', 'space=40', 'locks=ENOSYS;event=17', 'clock=-3600', 'term=7', 'interrupt=7'])
def test_a_harm_is_made_again_from_its_text(text):
  harm = harms.parse(text)
  assert str(harm) == text
  words = dict.fromkeys(('read', 'stat', 'files', 'space', 'locks'), {0, 1, 2})
  words |= {'term': {0, 75}, 'interrupt': {0, 130}}
  assert harm.codes == words.get(text.split('=')[0], {0})


def test_a_kill_that_is_drawn_is_made_again_from_its_text():
  for seed in range(50):
    harm = harms.Kill.draw(random.Random(seed), changes=100, seconds=3)
    assert str(harms.parse(str(harm))) == str(harm)


def test_a_file_event_happens_before_the_operation(tmp_path, in_a_child):
  def seen_events() -> list:
    seen = []
    file_events.watch(str(tmp_path), lambda event: seen.append(
        (*event, event.does, os.path.lexists(tmp_path / 'x'))))
    (tmp_path / 'x').write_text('1')
    (tmp_path / 'x').rename(tmp_path / 'y')
    (tmp_path / 'y').read_text()
    (tmp_path / 'y').exists()
    (tmp_path / 'y').unlink()
    (tmp_path.parent / 'elsewhere').touch()
    return seen

  assert in_a_child(seen_events) == [
      ['write', 'x', 'change', False], ['os.rename', 'x', 'change', True],
      ['read', 'y', 'read', False], ['stat', 'y', 'stat', False],
      ['os.remove', 'y', 'change', False]]


def test_the_table_of_the_documents_is_that_of_the_summary():
  path = 'launch/results/chaos.json'
  text = (ROOT / 'launch/results/README.md').read_text()
  assert f'<!-- {path} -->\n{summary.table(ROOT / path)}\n<!-- end -->' in text


def test_the_table_counts_what_ended_otherwise(tmp_path):
  outcomes = {'sweep': {'as uninterrupted': 1000, 'as uninterrupted, unharmed': 200},
              'phases': {'as uninterrupted': 2, 'hangs': 1}}
  (tmp_path / 'chaos.json').write_text(json.dumps({'outcomes': {'kills': outcomes}}))
  row = summary.table(tmp_path / 'chaos.json').splitlines()[2]
  assert [cell.strip() for cell in row.split('|')[1:-1]] == [
      'kills', 'phases, sweep', '1,203', '1']


@pytest.mark.parametrize('name', ['kdih/page.jinja', 'tests/chaos/x.py', 'tests/helpers/x.py'])
def test_a_change_of_the_code_is_known(tmp_path, monkeypatch, name):
  subprocess.run(['git', 'init', '-q', tmp_path], check=True)
  monkeypatch.setattr(summary, 'ROOT', tmp_path)
  path = tmp_path / name
  path.parent.mkdir(parents=True)
  path.write_text('1')
  before = summary._code()
  assert summary._code() == before
  path.write_text('2')
  assert summary._code() != before
