"""How inputs are changed, and what is written outside while they are used."""
import os
import shutil
import tempfile

import pytest

from tests.chaos import kinds, mutations


def test_a_batch_of_inputs_is_drawn_again():
  first = [repr(found) for found in mutations.inputs('run', 3)]
  mutations.inputs.cache_clear()
  assert [repr(found) for found in mutations.inputs('run', 3)] == first
  assert len(set(first)) > 30


@pytest.mark.parametrize('way', mutations._WAYS)
def test_each_way_changes_a_file(tmp_path, way):
  folder, outside = tmp_path / 'folder', tmp_path / 'outside'
  (folder / 'below').mkdir(parents=True)
  outside.mkdir()
  path = folder / 'below' / 'x.json'
  path.write_text('{"a": [1, 2]}')
  before = path.stat()
  change = mutations.FileChange(0.5, way, 0.9, 'value', 'y.json')
  assert change.apply(folder, outside) == f'{way} below/x.json'
  assert not path.is_file() or path.is_symlink() or (
      path.stat().st_size != before.st_size or path.read_bytes() != b'{"a": [1, 2]}')


@pytest.mark.parametrize(('where', 'is_copy'), [(0.2, True), (0.9, False)])
def test_a_link_of_a_folder_is_never_its_root(tmp_path, where, is_copy):
  folder, outside = tmp_path / 'folder', tmp_path / 'outside'
  (folder / 'below').mkdir(parents=True)
  outside.mkdir()
  for path in (folder / 'a.json', folder / 'z.json', folder / 'below' / 'x.json'):
    path.write_text('{}')
  for which in (0, 0.5, 0.99):
    shutil.rmtree(outside)
    outside.mkdir()
    change = mutations.FileChange(which, 'link of the folder', where, 'value', 'y.json')
    assert change.apply(folder, outside) == 'link of the folder below/x.json'
    assert not folder.is_symlink() and (folder / 'below').is_symlink()
    assert (folder / 'below/x.json').is_fifo() == is_copy
    (folder / 'below').unlink()
    (folder / 'below').mkdir()
    (folder / 'below/x.json').write_text('{}')


def test_the_empty_folder_of_tfds_alone_is_allowed_outside(tmp_path, in_a_child):
  made = [tempfile.mkdtemp(suffix) for suffix in ('tfds', 'other')]
  for folder in made:
    os.rmdir(folder)

  def execute(*_) -> list[int]:
    for folder in made:
      os.mkdir(folder)
      os.rmdir(folder)
    return [0]

  def noted() -> list[str]:
    notes = []
    place = kinds.Place(tmp_path / 'place', tmp_path / 'root' / 'tfds')
    mutations._watched(place, mutations.Mutated(lambda _: None, '', execute), None, notes.append)
    return [note for note in notes if note.startswith('outside: os.mkdir')]

  assert in_a_child(noted) == [f'outside: os.mkdir {made[1]}']
