"""What a sweep would cost, by `--dry_run`: numbers worked out by hand, and nothing written."""
import re

import pytest
from conftest import TESTS, tiny_command

from kdih import command_line, grid, models, sweep, validation


def dry_run(workdir, data_dir, *overrides) -> int:
  return sweep.main(tiny_command(workdir, data_dir, '--dry_run', *overrides))


def costs(text: str) -> list[tuple[str, ...]]:
  """Name, parameters, FLOPs, and number of runs of every phase."""
  return re.findall(r'^  (\S.*?) +([\d,]+) parameters +(\S+) FLOPs .* x (\d+)$', text, re.MULTILINE)


@pytest.mark.slow
def test_a_dry_run_tells_the_costs_and_writes_nothing(tmp_path, digits_dir, capsys):
  workdir = tmp_path / 'w'
  assert dry_run(workdir, digits_dir, '--methods=ce,dml', '--seeds=1,2') == 0
  text = capsys.readouterr().out
  # Two convolutions with bias and norm, 4 and 8 wide: 36 + 4 + 8, 288 + 8 + 16; then 80 + 10.
  assert re.search(r'teacher +tiny_nets:TinyNet: 450 parameters', text)
  ce, dml = costs(text)
  # Half as wide: 18 + 2 + 4, 72 + 4 + 8; then 40 + 10.
  assert ce[:2] == ('student ce', '158') and dml[:2] == ('student dml', '316')  # With a peer.
  assert float(dml[2]) / float(ce[2]) == pytest.approx(2, rel=0.3)
  assert ce[3] == dml[3] == '2'
  # The same is said of what has not been prepared, at once and without a network.
  assert dry_run(workdir, tmp_path / 'none', '--methods=ce,dml', '--seeds=1,2') == 0
  assert costs(capsys.readouterr().out) == [ce, dml]
  assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_several_pairs_is_counted_once(tmp_path, digits_dir, capsys):
  assert dry_run(tmp_path / 'w', digits_dir, '--methods=ce,dih', '--seeds=1',
                 '--students=tiny_nets:TinyNet,tiny_nets:NoTaps') == 0
  assert [name for name, *_ in costs(capsys.readouterr().out)] == [
      'teacher', 'heads', 'student ce', 'student dih', 'student ce', 'student dih']


def test_what_is_not_known_before_a_data_set_is_prepared_is_not_guessed(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce',
                 '--config.data.name=fashion_mnist') == 0
  text = capsys.readouterr().out
  assert 'images (28, 28, 1), 10 classes' in text and ': 158 parameters' in text
  assert 'how long it takes is not known before fashion_mnist is prepared' in text
  assert costs(text) == [] and list(tmp_path.iterdir()) == []


def test_a_wrong_split_is_refused_although_nothing_is_prepared(tmp_path, capsys):
  assert dry_run(tmp_path / 'w', tmp_path / 'none', '--methods=ce',
                 '--config.data.train_split=trian') == 2
  error = capsys.readouterr().err
  assert error.startswith("kdih: config.data.train_split: 'trian' cannot be read (")
  assert error.count('\n') == 1


@pytest.mark.parametrize('table, num_pairs', [
    ('cifar10', 9), ('cifar100', 9), ('tiny_imagenet', 6), ('cifar100,runlocal', 1)])
def test_the_papers_comparison_is_a_sweep_of_what_there_is(table, num_pairs):
  config, _ = command_line.read(
      ['kdih', f'--config={TESTS.parent}/configs/paper.py:table={table}', '--workdir=unused'])
  validation.check(config)
  pairs = grid.pairs(config)
  assert len(pairs) == num_pairs
  assert {name for pair in pairs for name in (pair.teacher, pair.student)} <= set(models.names())
  assert set(pairs[0].methods) <= set(config.methods) and 'dih' in pairs[0].methods
