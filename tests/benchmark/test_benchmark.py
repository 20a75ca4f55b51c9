"""The benchmark: its command line, its arithmetic, its programs, and what it writes."""
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.benchmark import __main__ as benchmark, measuring, programs, results, roofline, step_parts
from kdih.benchmark.measuring import Item, Times
from kdih.benchmark.roofline import Ceilings, Work

BAD = [
    ('--pairs=resnet8', '--pairs: ', 'resnet110:resnet8'),
    ('--pairs=resnet8:resnet9', '--pairs: ', "did you mean 'resnet"),
    ('--batches=64,many', '--batches: ', "is 'many'; it must be a whole number"),
    ('--batches=1', '--batches: ', 'at least 2'),
    ('--batches=6', '--batches: ', '4 devices'),
    ('--batches=20000', '--batches: ', '10000 images'),
    ('--runs=0', '--runs: ', 'at least 1'),
    ('--precision=float16', '--precision: ', 'bfloat16, float32'),
    ('--peer=tensorflow', '--peer: ', 'torch'),
    ('--measure=bare,lopo', '--measure: ', "did you mean 'loop'"),
    ('--measure=loop', '--measure: ', "'bare' is missing"),
    ('--out=/no/such/folder/x.json', '--out: ', 'No such file'),
    ('--out=/', '--out: ', 'is a folder'),
    ('--batch=64', "'--batch=64' ", 'is not a flag'),
]
# What the benchmark does without; importing any of them fails.
BLOCKED = """
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'ml_collections'):
  sys.modules[name] = None
import importlib, pkgutil
import kdih.benchmark
"""


@pytest.mark.parametrize(('flag', 'begins', 'words'), BAD)
def test_a_bad_flag_gets_one_line(flag, begins, words, capsys, monkeypatch):
  monkeypatch.setattr(roofline, 'measure_ceilings', lambda precision: Ceilings(1.0, 1.0))
  monkeypatch.setattr(programs.networks, 'initialise', None)  # Nothing is computed.
  assert benchmark.main(['benchmark', '--measure=bare', flag]) == 2
  line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith('kdih: ')]
  assert line.startswith(f'kdih: {begins}') and words in line


def test_torch_that_is_missing_is_named_with_the_remedy(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert benchmark.main(['benchmark', '--peer=torch']) == 2
  assert "pip install 'kdih[torch]'" in capsys.readouterr().err


def test_none_of_it_imports_tensorflow_or_ml_collections():
  body = """
for module in pkgutil.iter_modules(kdih.benchmark.__path__):
  if module.name != 'peer':  # It needs PyTorch.
    importlib.import_module(f'kdih.benchmark.{module.name}')
import launch.studies.scaling.problem  # It uses the same construction of problems.
for module in ('problem', 'networks', 'teacher', 'heads', 'student'):
  importlib.import_module(f'kdih.phases.{module}')
"""
  subprocess.run([sys.executable, '-c', BLOCKED + body], check=True)


def test_items_are_measured_in_turns_and_long_enough():
  log = []

  def item(name, each, least=1):
    return Item(name, lambda calls: log.append((name, calls)) or each * calls, least)

  found = measuring.measure([item('a', 0.125), item('b', 2.0), item('c', 2.0, 3)], 2, seconds=0.5)
  assert log[3:] == [('a', 4), ('b', 1), ('c', 3)] * 2
  assert found == {'a': Times((0.125, 0.125)), 'b': Times((2.0, 2.0)), 'c': Times((2.0, 2.0))}


def test_spread_is_told_by_quartiles():
  times = Times((5.0, 1.0, 2.0, 4.0, 3.0))
  assert (times.median, times.quartiles) == (3.0, (2.0, 4.0))
  assert Times((7.0,)).quartiles == (7.0, 7.0)


@pytest.mark.parametrize(('flops', 'bytes_', 'seconds', 'bound'), [
    (100.0, 4.0, 2.0, 'compute'), (100.0, 30.0, 3.0, 'memory')])
def test_the_roofline_is_the_slower_of_the_two(flops, bytes_, seconds, bound):
  ceilings, work = Ceilings(bytes_per_second=10.0, flops_per_second=50.0), Work(flops, bytes_, 0)
  assert (work.seconds(ceilings), work.bound(ceilings)) == (seconds, bound)
  found = results.pair_results('t', 's', 8, {'bare': Times((6.0,))}, work, ceilings)
  assert found['roofline']['fraction'] == seconds / 6


def test_work_is_that_of_the_program():
  shapes = [jnp.zeros(shape) for shape in ((4, 8), (8, 3))]
  work = roofline.work(jax.jit(lambda x, y: x @ y), *shapes)
  assert work.flops == 2 * 4 * 8 * 3
  assert work.bytes == 4 * (4 * 8 + 8 * 3 + 4 * 3)


def made_times() -> dict[str, Times]:
  seconds = {'bare': 8.0, 'loop': 10.0, 'kd': 6.4, 'several': 16.0, 'input': 1.0, 'teacher': 2.0,
             'heads': 0.5, 'student': 4.0, 'torch_paper': 30.0, 'torch_tuned': 15.0}
  return {name: Times((value,)) for name, value in seconds.items()}


def test_ratios_and_shares_of_made_times():
  found = results.pair_results('t', 's', 20, made_times(), Work(1.0, 1.0, None), Ceilings(1.0, 1.0))
  assert found['ratios'] == {
      'loop_efficiency': 0.8, 'dih_over_kd': 1.25, 'several_over_one': 2.0,
      'torch_paper_over_loop': 3.0, 'torch_tuned_over_loop': 1.5}
  assert found['shares'] == pytest.approx({
      'input': 0.1, 'teacher': 0.2, 'heads': 0.05, 'student': 0.4, 'host': 0.2, 'together': 0.05})
  assert found['items']['loop']['examples_per_second'] == 2.0


def test_the_table_has_the_numbers_of_each_item_in_columns():
  loop = {'median_s': 1.25, 'quartiles_s': [1.0, 1500.5], 'examples_per_second': 51.2}
  content = {
      'devices': ['cpu'], 'processor': 'p', 'cpus_usable': 2, 'precision': 'f32',
      'versions': {'jax': '1', 'torch': None}, 'runs': 3,
      'ceilings': {'bytes_per_second': 1e10, 'flops_per_second': 1e11},
      'pairs': [{'teacher': 't', 'student': 's', 'batch': 64, 'ratios': {'dih_over_kd': 1.25},
                 'items': {'loop': loop, 'torch_paper': {**loop, 'median_s': 0.5}},
                 'cost': {'flops': 1e9, 'bytes': 2e9},
                 'roofline': {'fraction': 0.25, 'bound': 'memory'}}]}
  lines = results.table(content).split('\n')
  start = lines.index('t -> s, batch 64') + 1
  assert lines[start:start + 4] == [
      '               ms per step                 quartiles  examples/s',
      '  loop            1,250.00  1,000.00 to 1,500,500.00          51',
      '  torch_paper       500.00  1,000.00 to 1,500,500.00          51',
      '  ratios: dih_over_kd 1.250']


def test_what_a_cache_saves_a_sweep_is_worked_out():
  times = {**made_times(), 'cached': Times((2.0,))}
  # 600 epochs of DIH and 1200 of others; 162 views to be made, then 1800 epochs without teachers.
  assert results.ratios(times)['sweep_over_cached'] == pytest.approx(
      (600 * 10.0 + 1200 * 6.4) / (162 * 3.5 + 1800 * 2.0))


def learnt(training: programs.Training):
  """Of each student, parameters after one step, and its loss."""
  state, metrics = training.step(*training.arguments())
  states = training.split(state)
  of_each = metrics if len(states) > 1 else [metrics]
  return jax.device_get([(state.params, values['loss'])
                         for state, values in zip(states, of_each, strict=True)])


def assert_close(found, expected):
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
               found, expected)


@pytest.mark.slow
def test_students_of_one_start_learn_together_as_one_alone():
  pair = programs.make_pair('resnet8', 'resnet8', 8, 'float32', programs.made_images(64))
  problem = programs.student_problem(pair, 'dih')
  alone = learnt(programs.Training(problem))
  assert_close(learnt(programs.Training(problem, students=2)), alone * 2)
  names = [item.name for item in step_parts.items(pair)]
  assert names == ['input', 'teacher', 'heads', 'student']


@pytest.mark.slow
def test_a_deep_teacher_has_logits_of_a_usual_size():
  pair = programs.make_pair('resnet20', 'resnet8', 8, 'float32', programs.made_images(16))
  images = pair.data.preprocess(pair.examples.read(np.arange(16))[0], jnp.arange(16), None)
  logits = pair.built.teacher.apply(pair.frozen['teacher'], images, train=False)
  assert 0.01 < np.std(logits) < 10


@pytest.mark.slow
def test_a_tiny_run_without_tensorflow(tmp_path):
  path = tmp_path / 'speed.json'
  command = (f"sys.argv = ['benchmark', '--pairs=resnet8:resnet8', '--batches=8', '--runs=1', "
             f"'--out={path}']\nimport runpy\n"
             "runpy.run_module('kdih.benchmark', run_name='__main__')")
  child = subprocess.run([sys.executable, '-c', BLOCKED + command], capture_output=True, text=True)
  assert child.returncode == 0, child.stderr
  content = json.loads(path.read_text())
  assert set(content) == {
      'command', 'git_commit', 'devices', 'platform', 'processor', 'cpu_count', 'cpus_usable',
      'versions', 'xla_flags', 'precision', 'runs', 'ceilings', 'pairs'}
  assert content['devices'] == ['cpu'] * 4
  assert content['versions']['jax'] == jax.__version__
  pair, = content['pairs']
  assert list(pair['items']) == ['bare', 'loop', 'kd', 'several', 'cached', 'input', 'teacher',
                                 'heads', 'student']
  assert all(len(item['runs_s']) == 1 and item['median_s'] > 0 for item in pair['items'].values())
  assert sum(pair['shares'].values()) == pytest.approx(1)
  assert pair['cost']['flops'] > 1e7 and pair['cost']['bytes'] > 1e6
  assert set(pair['start']) == {'first', 'second'}
  assert 'resnet8 -> resnet8, batch 8' in child.stdout
  for name in pair['items']:
    assert f'\n  {name} ' in child.stdout
