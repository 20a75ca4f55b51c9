"""What does not fit is one line before anything is trained; running out all the same is one too."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from kdih import errors, main
from kdih.phases import memory, step_cost
from kdih.runtime import devices
from kdih.sweep import __main__ as sweep
from tests.helpers.runs import tiny_command
from tests.phases.test_step_cost import blank

NETS = 'tests.helpers.tiny_nets'
PARAMETERS = 450 * 4  # Bytes of the teacher's.
STATISTICS = 2 * (4 + 8) * 4
IMAGES = (200 + 50) * 64


def need(phase, *overrides):
  run = blank(*overrides)
  step, = run.steps(phase)
  problem = step.problem()
  teachers, signal = step_cost.of_signal(problem)
  loss = step_cost.of_loss(problem, signal, gradient=False)
  return memory.least(run, step, problem, teachers + loss)


@pytest.mark.parametrize('optimizer, copies, counters', [('sgd', 3, 1), ('adamw', 4, 2)])
def test_what_learns_is_kept_with_gradients_and_optimizer(optimizer, copies, counters):
  found = need('teacher', f'teacher.train.optimizer={optimizer}')
  assert found.trained == copies * PARAMETERS + STATISTICS + 4 * counters
  assert (found.frozen, found.images, found.cache) == (0, IMAGES, 0)
  assert found.largest == 8 * 4 * 4 * 4 * 4
  assert found.total == found.trained + IMAGES + found.largest


def test_who_teaches_is_kept():
  heads = (64 * 10 + 10 + 32 * 10 + 10) * 4
  found = need('student/dih', 'student.methods=dih')
  weights = found.frozen - PARAMETERS - STATISTICS - heads
  assert 0 <= weights < 100  # A number for each member and rule.
  assert need('student/ce', 'student.methods=ce').frozen == 0


def test_what_does_not_stay_on_the_device_is_not_counted():
  assert need('teacher', 'data.loader=streaming').images == 0
  device, host = (need('student/kd', 'student.methods=kd', 'compute.cache=all_views',
                       f'compute.cache_place={place}').cache for place in ('device', 'host'))
  assert (device, host) == (160 * 9 * 10 * 2 // 4, 0)


with tfds.core.registered.skip_registration():
  class ManyClasses(tfds.core.GeneratorBasedBuilder):
    """A few images of 64x64 pixels, of as many classes as ImageNet-21k has."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(64, 64, 3)),
          'label': tfds.features.ClassLabel(num_classes=21_843)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(80), 'test': self._generate_examples(8)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {'image': np.full((64, 64, 3), i, np.uint8), 'label': i + 8 * (count == 8)}


def refused(capsys, workdir, data_dir, *overrides) -> str:
  """The line by which a run is refused before anything is written."""
  assert main.main(tiny_command(workdir, data_dir, *overrides)) == 2
  output = capsys.readouterr().err
  lines = [line for line in output.splitlines() if not line.startswith('data: ')]
  assert len(lines) == 1 and not workdir.exists(), output
  return lines[0]


@pytest.fixture
def sixteen_gigabytes(monkeypatch):
  monkeypatch.setattr(memory, 'of_device', lambda: 16 * 10**9)


def test_heads_of_too_many_classes_are_refused_before_the_teacher_is_trained(
    tmp_path, capsys, sixteen_gigabytes):
  ManyClasses(data_dir=str(tmp_path / 'data')).download_and_prepare(file_format='array_record')
  capsys.readouterr()
  options = ('--config.data.name=many_classes', '--config.data.train_split=train',
             '--config.data.test_split=test', '--config.teacher.name=resnet8',
             '--config.student.methods=ce')
  line = refused(capsys, tmp_path / 'w', tmp_path / 'data', *options)
  # Features of 64x64x16, 32x32x32 and 16x16x64 numbers; weights, gradients and momentum.
  assert 3 * 4 * 21_843 * (65_536 + 32_768 + 16_384) > 30.05e9
  assert line.startswith('kdih: heads: training needs at least 30.')
  assert ('an equal part of the host memory is 16.00 GB; the largest part is the trained '
          'parameters, their gradients and the optimizer state (30.06 GB)') in line
  assert line.endswith('set config.heads.kind=gap, or config.heads.taps to fewer taps')


@pytest.mark.parametrize('overrides, expected', [
    (('--config.methods.crd.negatives=2000000000',),
     'kdih: config.methods.crd.negatives: is 2000000000; it must be a whole number from 1 to '
     '16777216'),
    # An index of 4 bytes for each negative of the 4096 images that a device has of a batch.
    (('--config.methods.crd.negatives=16777216', '--config.student.train.global_batch_size=16384'),
     'kdih: student/crd: training needs at least 274.88 GB on each device, but an equal part of '
     'the host memory is 16.00 GB; the largest part is the largest array of a step (274.88 GB); '
     'set config.methods.crd.negatives to less, or config.student.train.global_batch_size to '
     'less')])
def test_too_many_negatives_are_refused(
    tmp_path, digits_dir, capsys, sixteen_gigabytes, overrides, expected):
  assert refused(capsys, tmp_path / 'w', digits_dir, '--config.student.methods=crd',
                 *overrides) == expected


def test_where_parts_of_a_batch_save_memory_they_are_named(
    tmp_path, digits_dir, capsys, monkeypatch):
  monkeypatch.setattr(memory, 'of_device', lambda: 100_000)
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  line = refused(capsys, tmp_path / 'w', digits_dir, '--config.phases=teacher',
                 '--config.teacher.train.global_batch_size=65536')
  assert 'the largest part is the largest array of a step (' in line
  assert line.endswith('; set config.compute.accumulate=2, or '
                       'config.teacher.train.global_batch_size to less')
  with pytest.raises(errors.TrainingError) as raised, memory.reported_in_one_line('teacher'):
    raise MemoryError
  assert 'config.compute.accumulate=2, a smaller config.teacher.train.global' in str(raised.value)


def test_a_sweep_refuses_what_does_not_fit(tmp_path, digits_dir, capsys, monkeypatch):
  monkeypatch.setattr(memory, 'of_device', lambda: 10_000)
  assert sweep.main(tiny_command(tmp_path / 'w', digits_dir, '--methods=ce')) == 2
  assert 'kdih: student/ce: training needs at least ' in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('command', [main.main, sweep.main])
def test_no_image_is_read_before_memory_is_checked(tmp_path, capsys, monkeypatch, command):
  for split in ('train', 'test'):
    for label in ('ant', 'bee'):
      folder = tmp_path / 'images' / split / label
      folder.mkdir(parents=True)
      (folder / 'damaged.png').write_bytes(b'damaged')
  options = (f'--config.data.folder={tmp_path / "images"}', '--config.data.image_size=8',
             '--config.data.name=image_folder', '--config.data.train_split=train',
             '--config.data.test_split=test', '--config.student.methods=ce',
             '--config.data.validation_fraction=0.5')
  assert command(tiny_command(tmp_path / 'w', '', *options)) == 2
  assert 'damaged' in capsys.readouterr().err
  monkeypatch.setattr(memory, 'of_device', lambda: 0)
  assert command(tiny_command(tmp_path / 'w', '', *options)) == 2
  line, = capsys.readouterr().err.splitlines()
  assert ': training needs at least ' in line


def test_what_is_finished_is_not_refused(finished, digits_dir, monkeypatch, capsys):
  monkeypatch.setattr(memory, 'of_device', lambda: 0)
  assert main.main(tiny_command(finished, digits_dir)) == 0


def test_an_array_that_no_memory_holds_is_one_line():
  with pytest.raises(errors.TrainingError) as raised, memory.reported_in_one_line('heads'):
    jnp.zeros(2**46, jnp.uint8).block_until_ready()
  assert str(raised.value).startswith('heads: memory ran out (RESOURCE_EXHAUSTED: Out of memory ')
  assert 'config.heads.kind=gap' in str(raised.value)


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason='there the process dies within the FFT')
def test_running_out_all_the_same_is_one_line(tmp_path, digits_dir, capsys):
  """For real: the model asks for 2^48 bytes, of which the traced program shows nothing."""
  assert main.main(tiny_command(tmp_path / 'w', digits_dir, '--config.phases=teacher',
                                f'--config.teacher.name={NETS}:Enormous')) == 1
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith('kdih: teacher: memory ran out (RESOURCE_EXHAUSTED: Out of memory ')
  assert 'run the same command again with --config.compute.remat=True to resume' in last
  assert 'config.teacher.train.global_batch_size' in last


@pytest.mark.parametrize('error, kept', [
    (MemoryError('no'), False), (jax.errors.JaxRuntimeError('INTERNAL: broken'), True),
    (ValueError('Out of memory'), True)])
def test_other_errors_stay_what_they_are(error, kept):
  with pytest.raises(type(error) if kept else errors.TrainingError), \
      memory.reported_in_one_line('heads'):
    raise error


def test_a_devices_own_limit_counts(monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 7 * 10**9, 'bytes_in_use': 0}

  monkeypatch.setattr(jax, 'local_devices', lambda: [Device(), Device()])
  assert memory.of_device() == 7 * 10**9
