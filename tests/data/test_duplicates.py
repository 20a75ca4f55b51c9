"""Images of a folder that are in both splits are counted, in one line; nothing is refused."""
import pytest

from kdih import errors
from kdih.data import datasets, duplicates
from kdih.phases import pipeline
from kdih.runtime.workdir import Workdir, resolved
from tests.helpers import sweeps
from tests.helpers.made_data import make_config, make_folder, message
from tests.helpers.made_results import result
from tests.helpers.runs import read_config


@pytest.fixture
def folder(tmp_path):
  make_folder(tmp_path / 'pictures')
  return tmp_path / 'pictures'


def copy(folder, source, *targets):
  for target in targets:
    (folder / target).write_bytes((folder / source).read_bytes())


def warned(folder, capsys, **fields):
  """The lines about images in both splits."""
  config = make_config(name='image_folder', folder=str(folder),
                       data_dir=str(folder.parent / 'tfds'), **fields)
  builder = datasets.open_builder(config)
  capsys.readouterr()
  duplicates.warn_if_shared(builder, config)
  return capsys.readouterr().err.splitlines()


def test_images_of_both_splits_are_counted_whatever_their_name_and_class(folder, capsys):
  assert warned(folder, capsys) == []  # All of one size, and no two alike.
  copy(folder, 'train/cow/3.png', 'test/ant/1.png')
  assert warned(folder, capsys) == [
      'data: 1 image of test is also in train, such as test/ant/1.png (train/cow/3.png)']
  copy(folder, 'train/ant/2.png', 'test/Bee/x.png', 'test/Bee/y.png', 'train/cow/2.png')
  assert warned(folder, capsys) == [
      'data: 3 images of test are also in train, such as test/Bee/x.png (train/ant/2.png)']


def test_files_that_differ_early_alone_are_no_duplicates(folder, capsys):
  content = bytearray((folder / 'train/ant/0.png').read_bytes()) + bytes(5000)
  (folder / 'train/ant/0.png').write_bytes(content)
  (folder / 'test/ant/0.png').write_bytes(content)
  assert len(warned(folder, capsys)) == 1
  (folder / 'test/ant/0.png').write_bytes(
      (folder / 'test/ant/1.png').read_bytes().ljust(len(content), b'\0'))
  assert warned(folder, capsys) == []


def test_images_that_are_twice_in_one_split_or_in_no_split_are_no_matter(folder, capsys):
  copy(folder, 'train/ant/0.png', 'train/ant/9.png')
  copy(folder, 'test/ant/0.png', 'test/ant/9.png')
  (folder / 'more' / 'ant').mkdir(parents=True)
  copy(folder, 'train/ant/0.png', 'more/ant/0.png')
  assert warned(folder, capsys) == []
  assert warned(folder, capsys, test_split='test+more') == [
      'data: 1 image of test is also in train, such as more/ant/0.png (train/ant/0.png)']


def test_of_two_slices_of_a_folder_the_images_that_each_holds_are_compared(folder, capsys):
  """Every image is there twice: in one slice, or in both."""
  for label in ('ant', 'cow'):
    for i in range(4):
      copy(folder, f'train/{label}/{i}.png', f'train/{label}/copy{i}.png')
  config = make_config(name='image_folder', folder=str(folder),
                       data_dir=str(folder.parent / 'tfds'))
  names = [file.name for file in datasets.open_builder(config).files('train')]
  train, test = names[:10], names[10:]
  expected = sorted(name for name in test if any(
      name != other and name.replace('copy', '') == other.replace('copy', '') for other in train))
  assert 0 < len(expected) < len(test)
  line, = warned(folder, capsys, train_split='train[:50%]', test_split='train[50%:]')
  assert line.startswith(f'data: {len(expected)} image') and f'as {expected[0]} (' in line


def test_a_file_that_is_gone_meanwhile_is_named(folder):
  config = make_config(name='image_folder', folder=str(folder),
                       data_dir=str(folder.parent / 'tfds'))
  builder = datasets.open_builder(config)
  (folder / 'test/cow/0.png').unlink()
  found = message(duplicates.warn_if_shared, builder, config, kind=errors.DataError)
  assert found.startswith(f'config.data.folder: {folder}/test/cow/0.png was changed or removed')


def overrides(folder):
  return ('--config.data.name=image_folder', f'--config.data.folder={folder}',
          '--config.data.train_split=train', '--config.data.test_split=test')


@pytest.mark.slow
def test_a_run_warns_once_and_a_finished_one_no_more(folder, tmp_path, capsys):
  copy(folder, 'train/cow/3.png', 'test/ant/1.png')
  config = read_config('unused', str(tmp_path / 'tfds'), *overrides(folder),
                       '--config.phases=teacher')
  pipeline.prepare_run(config, tmp_path / 'w')
  assert capsys.readouterr().err.count('1 image of test is also in train') == 1
  workdir = Workdir(tmp_path / 'w')
  workdir.open(resolved(config))
  workdir.finish('teacher', result(0.5, steps=1, seconds=1.0, examples_per_second=1.0))
  pipeline.prepare_run(config, tmp_path / 'w')
  assert 'also in train' not in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_warns_once_and_a_finished_one_no_more(folder, tmp_path, capsys):
  copy(folder, 'train/cow/3.png', 'test/ant/1.png')
  for count in (1, 0):
    assert sweeps.run(tmp_path / 'w', str(tmp_path / 'tfds'), *overrides(folder),
                      '--methods=ce', '--seeds=1,2') == 0
    assert capsys.readouterr().err.count('1 image of test is also in train') == count
