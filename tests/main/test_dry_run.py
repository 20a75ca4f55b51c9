"""What a run will take, by `--dry_run`: measured for real, numbers by hand, nothing written."""
import jax
import pytest

from kdih import main
from kdih.phases import dry_run
from tests.helpers.dry_runs import MEMORY, by_phase, clock, measured  # noqa: F401
from tests.helpers.runs import tiny_command
from tests.phases.test_step_cost import CONV1, FORWARD, HEADS

NETS = 'tests.helpers.tiny_nets'
PHASES = ['teacher', 'heads', 'student/ce', 'student/kd', 'student/dih']


def run(workdir, data_dir, *overrides) -> int:
  return main.main(tiny_command(workdir, data_dir, '--dry_run', *overrides))


@pytest.mark.slow
def test_every_step_is_measured_without_data_and_nothing_is_written(tmp_path, capsys):
  assert run(tmp_path / 'w', tmp_path / 'none', '--dry_run_seconds=600') == 0
  out, err = capsys.readouterr()
  table = by_phase(out)
  assert list(table) == PHASES
  # The student that is taught by the cohort tells most of the others.
  assert measured(err) == ['teacher', 'heads', 'student/dih', 'student/ce', 'student/kd']
  assert all(row.steps == '6' and row.step[0] != '~' and row.total[0] != '~' and row.runs == 'x 1'
             for row in table.values())
  # Two convolutions with bias and norm, 4 and 8 wide: 36 + 4 + 8, 288 + 8 + 16; then 80 + 10.
  assert (table['teacher'].model, table['teacher'].parameters) == (f'{NETS}:TinyNet', '450')
  assert (table['heads'].model, table['heads'].parameters) == ('2 heads, flatten', '980')
  # Half as wide: 18 + 2 + 4, 72 + 4 + 8; then 40 + 10.
  assert table['student/kd'].parameters == '158'
  assert 'images: 160 to train with, 40 to validate with, 50 to test with' in out
  assert '~' not in out.partition('The column "in all"')[0]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures('clock')
def test_what_there_is_no_time_for_is_scaled_and_marked(tmp_path, capsys):
  """A minute for the teacher and one for the heads; then two have gone by."""
  assert run(tmp_path / 'w', tmp_path / 'none') == 0
  out, err = capsys.readouterr()
  assert measured(err) == ['teacher', 'heads']
  table = by_phase(out)
  assert (table['teacher'].step, table['heads'].step) == ('500.0 ms', '500.0 ms')
  # A batch of 8 on each of four devices. The teacher's step is the more like a student's.
  speed = 8 * (3 * FORWARD - CONV1) / 0.5
  student = {'ce': 0, 'kd': FORWARD}
  own = 2 * 9 * 2 * 16 + 2 * 9 * 2 * 4 * 4 + 2 * 4 * 10
  for name, asked in student.items():
    step = 8 * (asked + 3 * own - 2 * 9 * 2 * 16) / speed
    assert table[f'student/{name}'].step.startswith('~')
    assert table[f'student/{name}'].step == f'~{1000 * step:.1f} ms'
  # Six steps; validation after each second and of the best; the test split of two.
  evaluated = FORWARD * (4 * 40 + 2 * 50) / (4 * speed)
  assert table['teacher'].total == f'{6 * 0.5 + evaluated:.1f} s'
  assert table['teacher'].memory == f'{MEMORY / 1e6:,.0f} MB'
  assert '2 of 5 steps were compiled and timed here. ~ marks numbers that are scaled' in out
  heads = (FORWARD + HEADS) * (5 * 40 + 3 * 50) / (4 * 8 * (FORWARD + 2 * HEADS) / 0.5)
  assert table['heads'].total == f'{6 * 0.5 + heads:.1f} s'


@pytest.mark.slow
def test_no_seconds_measure_nothing(tmp_path, capsys):
  assert run(tmp_path / 'w', tmp_path / 'none', '--dry_run_seconds=0') == 0
  out, err = capsys.readouterr()
  table = by_phase(out)
  assert not measured(err) and list(table) == PHASES
  assert all((row.step, row.total) == ('?', '?') and row.memory[0] == '~'
             for row in table.values())
  assert 'in all: not known' in out and 'No step was measured' in out
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures('clock')
def test_of_a_data_set_of_unknown_size_steps_are_known_and_epochs_are_not(tmp_path, capsys):
  assert run(tmp_path / 'w', tmp_path / 'none', '--config.data.name=fashion_mnist',
             '--config.data.train_split=train', '--config.data.test_split=test',
             '--config.heads.train.unit=epochs') == 0
  out = capsys.readouterr().out
  table = by_phase(out)
  assert 'fashion_mnist, 28x28x1, 10 classes; images: their number is not known' in out
  assert table['teacher'].steps == '6' and table['teacher'].total != '?'
  assert (table['heads'].steps, table['heads'].step) == ('6 epochs', '500.0 ms')
  assert table['heads'].total == '?' and 'in all: not known' in out
  assert 'its number of images is not known' in out and list(tmp_path.iterdir()) == []


def test_a_data_set_on_an_object_store_is_not_copied(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert run(tmp_path / 'w', 'gs://nowhere/tfds', '--dry_run_seconds=0') == 0
  assert list(by_phase(capsys.readouterr().out)) == PHASES
  assert list(tmp_path.iterdir()) == []


def test_what_is_finished_is_left_out(finished, digits_dir, capsys):
  assert run(finished, digits_dir, '--dry_run_seconds=0',
             '--config.student.methods=ce,at') == 0
  assert list(by_phase(capsys.readouterr().out)) == ['student/at']
  assert run(finished, digits_dir) == 0
  assert 'Every phase is finished' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures('clock')
def test_chains_preparations_and_caches_have_lines_of_their_own(tmp_path, capsys):
  assert run(tmp_path / 'w', tmp_path / 'none', '--config.student.methods=kd,dih,takd,fitnets',
             '--config.compute.cache=views:4', '--config.compute.cache_taps') == 0
  table = by_phase(capsys.readouterr().out)
  assert list(table) == [
      'teacher', 'cache for heads', 'heads', 'cache for student/kd', 'student/kd',
      'cache for student/dih', 'student/dih', 'student/takd/assistant1', 'student/takd/assistant2',
      'student/takd', 'student/fitnets/prepare', 'student/fitnets']
  cache = table['cache for heads']
  assert cache.model == '4 views of 96 numbers' and cache.step == cache.steps == ''
  # The nearest that was measured is the teacher's step.
  seconds = FORWARD * 160 * 4 / (4 * 8 * (3 * FORWARD - CONV1) / 0.5)
  assert cache.total == f'~{seconds:.1f} s'


@pytest.mark.parametrize('overrides, expected', [
    (('--config.data.train_split=trian',), "config.data.train_split: unknown 'trian'; did you"),
    (('--config.compute.cache_taps',), 'config.compute.cache_taps: is True, but '),
    (('--config.compute.cache_members',),
     'config.compute.cache_members: is True, but config.compute.cache is none; set '
     'config.compute.cache to all_views or views:N, or config.compute.cache_members to False'),
    (('--config.phases=student',), "config.phases: 'student' needs the phase 'heads'"),
    (('--config.student.train.global_batch_size=30',),
     'config.student.train.global_batch_size: 30 images cannot be divided equally over 4 devices'),
    (('--dry_run_seconds=x',), "config.dry_run_seconds: is 'x'; it must be a whole number")])
def test_bad_input_is_one_line_all_the_same(tmp_path, capsys, overrides, expected):
  assert run(tmp_path / 'w', tmp_path / 'none', *overrides) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason='there the process dies within the FFT')
def test_running_out_while_it_is_measured_is_said(tmp_path, capsys):
  assert run(tmp_path / 'w', tmp_path / 'none', '--config.phases=teacher',
             f'--config.teacher.name={NETS}:Enormous') == 0
  out = capsys.readouterr().out
  assert 'teacher: memory ran out (RESOURCE_EXHAUSTED' in out and 'in all: not known' in out


def test_what_cannot_fit_is_said_and_not_tried(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(dry_run.memory, 'of_device', lambda: 30_000)
  assert run(tmp_path / 'w', tmp_path / 'none', '--config.phases=teacher,heads',
             '--config.heads.train.optimizer=adamw', '--config.student.methods=ce') == 0
  out, err = capsys.readouterr()
  assert 'heads' not in measured(err)
  assert 'More memory than a device has: ' in out and 'heads' in out.split('than a device has')[1]
