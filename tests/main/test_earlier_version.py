"""Folders of an earlier version: a run that was killed goes on, a sweep is reported as it was."""
import csv
import importlib.metadata
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile

import pytest

from kdih.report import __main__ as report, run_report
from tests.helpers.runs import CONFIG, ROOT

pytestmark = pytest.mark.slow

FIXTURES = ROOT / 'tests/fixtures'
STUDENT = 'student/reviewkd'  # It was killed in this phase, after step 18 or a little later.
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')  # On which the bits of a step depend.


def unpack(name: str, folder: pathlib.Path) -> pathlib.Path:
  with tarfile.open(FIXTURES / f'{name}.tar.gz') as archive:
    archive.extractall(folder, filter='data')
  return folder / name


def go_on(program: str, *arguments: str) -> str:
  """Runs a program on one device to its end, optimised as the earlier one was, and returns what it
  says while it works."""
  done = subprocess.run([sys.executable, '-m', f'kdih.{program}', *arguments], cwd=ROOT,
                        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'XLA_FLAGS': ''},
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stderr


def steps_of(workdir: pathlib.Path, name: str) -> list[int]:
  lines = (workdir / STUDENT / 'metrics.jsonl').read_text().splitlines()
  return [line['step'] for line in map(json.loads, lines) if name in line]


def read(path: pathlib.Path):
  return json.loads(path.read_text())


def test_a_run_that_was_killed_goes_on_and_ends_as_it_would_have(tmp_path, digits_dir):
  workdir = unpack('run', tmp_path)
  others = {path: path.stat().st_mtime_ns for phase in ('teacher', 'heads', 'student/kd')
            for path in (workdir / phase).rglob('*')}
  before, begun = steps_of(workdir, 'val/top1'), read(workdir / 'manifest.json')['versions']
  assert 18 <= before[-1] < 40
  said = go_on('main', f'--config={CONFIG}:steps=40', f'--config.data.data_dir={digits_dir}',
               '--config.student.methods=kd,dih,reviewkd', f'--workdir={workdir}')
  assert {line.split(':')[0] for line in said.splitlines() if ' epoch ' in line} == {STUDENT}
  assert steps_of(workdir, 'val/top1') == list(range(2, 41, 2))
  resumed = [line for line in said.splitlines() if f'{STUDENT}: step ' in line]
  assert len(resumed) == (40 - before[-1]) // 2  # It goes on from the last checkpoint.
  assert {path: path.stat().st_mtime_ns for path in others} == others
  assert read(workdir / 'manifest.json')['command'].startswith('python -m kdih.main --config=')
  results, finished = read(workdir / 'results.json'), read(FIXTURES / 'run_finished.json')
  assert list(results) == list(finished)
  if all(importlib.metadata.version(name) == begun[name] for name in LIBRARIES):
    for part in ('val', 'test_last', 'test_best_val'):
      assert results['student']['reviewkd'][part]['loss'] == pytest.approx(
          finished['student']['reviewkd'][part]['loss'], abs=1e-4)
    assert run_report.table(results) == run_report.table(finished)


def test_a_finished_sweep_is_not_trained_again_and_has_the_tables_that_it_had(
    tmp_path, digits_dir, monkeypatch, capsys):
  workdir = unpack('sweep', tmp_path)
  tables = {path.name: path.read_bytes() for path in (workdir / 'comparison').iterdir()}
  assert set(tables) == {'report.md', 'results.csv', 'runs.csv', 'tables.tex'}
  said = go_on('sweep', f'--config={CONFIG}:steps=12', f'--config.data.data_dir={digits_dir}',
               '--methods=kd,dih', '--seeds=30,50', f'--workdir={workdir}')
  assert ' epoch ' not in said
  monkeypatch.chdir(tmp_path)
  assert report.main(['report', 'sweep']) == 0
  assert re.search(r'^\| dih +\| +2 \|', capsys.readouterr().out, re.MULTILINE)
  for name in ('results.csv', 'runs.csv'):
    rows, protocols = without_protocol((workdir / 'comparison' / name).read_bytes())
    rows_before, protocols_before = without_protocol(tables[name])
    assert protocols == protocols_before
    for row, before in zip(rows, rows_before, strict=True):
      assert row.keys() == before.keys()
      for column, text in row.items():
        assert same(text, before[column]), (name, column)


def same(text: str, before: str) -> bool:
  """Whether two cells are equal, as numbers up to rounding."""
  try:
    return float(text) == pytest.approx(float(before), rel=1e-12)
  except ValueError:
    return text == before


def without_protocol(content: bytes) -> tuple[list[dict[str, str]], list[int]]:
  """The rows of a table without the protocol, which says more now, and which rows share one."""
  rows = list(csv.DictReader(io.StringIO(content.decode())))
  protocols = [row.pop('protocol') for row in rows]
  return rows, [protocols.index(protocol) for protocol in protocols]
