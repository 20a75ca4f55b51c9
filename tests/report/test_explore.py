"""The members' predictions for single images: read from a run, chosen, and drawn."""
import itertools
import json
import shutil

import matplotlib.colors
import numpy as np
import pytest
from sklearn import datasets

from kdih import errors
from kdih.cohort import analysis
from kdih.report import explore
from kdih.report.style import STUDENT, TEACHER

# Six images of three classes, and which of them the members get right.
LABELS = np.array([0, 1, 2, 0, 1, 2])
RIGHT = {'stage1': [1, 1, 1, 0, 0, 1], 'stage2': [0, 0, 1, 1, 0, 0], 'final': [0, 0, 1, 0, 0, 1]}


@pytest.fixture(scope='module')
def answers(finished) -> explore.Answers:
  return explore.load(finished)


def test_the_answers_are_those_that_the_run_measured(finished, answers):
  heads = json.loads((finished / 'heads/result.json').read_text())
  assert list(answers.logits) == ['stage1', 'stage2', 'final']
  assert analysis.analyse(answers.logits, answers.labels) == heads['analysis']
  for name, logits in answers.logits.items():
    top1 = (logits.argmax(-1) == answers.labels).mean()
    assert top1 == pytest.approx(heads['members'][name]['test_best_val']['top1'], abs=1e-6)


def test_the_images_are_those_of_the_test_split_in_its_order(answers):
  digits = datasets.load_digits()
  test = np.arange(4, 1797, 5)[:50]  # Every fifth image, of which a tiny run takes 50.
  some = np.array([49, 0, 7])
  np.testing.assert_array_equal(
      answers.images(some)[..., 0], np.round(digits.images[test][some] * 255 / 16))
  np.testing.assert_array_equal(answers.labels, digits.target[test])
  assert answers.classes == list('0123456789')
  assert answers.images(some[:0]).shape == (0, 8, 8, 1)
  labels, logits = answers.of(some)
  np.testing.assert_array_equal(labels, digits.target[test][some])
  np.testing.assert_array_equal(logits['final'][2], answers.logits['final'][7])


def test_a_run_can_be_looked_at_where_its_data_lies_elsewhere(
    tmp_path, finished, digits_dir, answers):
  workdir = tmp_path / 'moved'
  shutil.copytree(finished, workdir)
  manifest = json.loads((workdir / 'manifest.json').read_text())
  manifest['config']['data']['data_dir'] = str(tmp_path / 'gone')
  (workdir / 'manifest.json').write_text(json.dumps(manifest))
  moved = explore.load(workdir, data_dir=digits_dir)
  np.testing.assert_array_equal(moved.logits['stage1'], answers.logits['stage1'])
  assert not (tmp_path / 'gone').exists()


def test_a_folder_without_finished_heads_is_refused_and_stays_as_it_was(tmp_path, finished):
  with pytest.raises(errors.ConfigError, match='holds no run with finished heads'):
    explore.load(tmp_path / 'nowhere')
  shutil.copy(finished / 'manifest.json', tmp_path)
  with pytest.raises(errors.ConfigError, match='holds no run with finished heads'):
    explore.load(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['manifest.json']


def logits_of(name: str, certainty=None) -> np.ndarray:
  """Logits of three classes: the label's is highest by `certainty` where it is right."""
  wrong = (LABELS + 1) % 3
  choice = np.where(RIGHT[name], LABELS, wrong)
  return np.eye(3)[choice] * (np.ones(6) if certainty is None else np.array(certainty))[:, None]


def made() -> dict[str, np.ndarray]:
  return {'stage1': logits_of('stage1', [1, 2, 1, 1, 1, 1]), 'stage2': logits_of('stage2'),
          'final': logits_of('final')}


@pytest.mark.parametrize(('members', 'found'), [
    (['stage1'], [1, 0]), (['stage2'], [3]), (['final'], []), (['stage2', 'final'], [3]),
    # Image 1 before image 0 by certainty, and image 5, of which two of them are sure, before both.
    (['stage1', 'final'], [5, 1, 0]), (['stage1', 'stage2', 'final'], [2, 5, 1, 0, 3]), ([], []),
])
def test_images_that_only_some_members_get_right_the_surest_first(members, found):
  assert explore.only_right(made(), LABELS, members).tolist() == found


def test_the_grid_shows_images_labels_and_answers():
  images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1) * 10
  logits = {'stage1': np.log([[0.75, 0.25]] * 6), 'a$b': np.log([[0.1, 0.9]] * 6)}
  figure = explore.grid(images, np.array([0, 1] * 3), logits, ['cat', 'd$o$g'])
  assert [axes.get_title() for axes in figure.axes] == ['cat', r'd\$o\$g'] * 3
  for axes, image in zip(figure.axes, images, strict=True):
    np.testing.assert_array_equal(axes.images[0].get_array(), image[..., 0])
    assert [text.get_text() for text in axes.texts] == [
        'stage1: cat, 75 %', r'a\$b: d\$o\$g, 90 %']
    assert axes.texts[0].xyann[1] > axes.texts[1].xyann[1] + 8  # Lines of letters of 8 points.
    assert axes.images[0].to_rgba(np.array([0, 255])).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
  colours = [[matplotlib.colors.to_hex(text.get_color()) for text in axes.texts]
             for axes in figure.axes[:2]]
  assert colours == [[TEACHER, STUDENT], [STUDENT, TEACHER]]


@pytest.mark.parametrize('name', ['', 'aquarium_fish', 'BasicBlock_10/Convolution_1'])
def test_nothing_in_the_grid_is_cut_off_or_covers_something_else(name):
  images, labels = np.zeros((11, 8, 8, 1), np.uint8), np.arange(11) % 3
  logits = {f'{name}{at}': np.zeros((11, 3)) for at in range(9)}
  figure = explore.grid(images, labels, logits, [f'{name}w', name, 'b'])
  renderer = figure.canvas.get_renderer()
  figure.draw(renderer)
  boxes = [part.get_window_extent(renderer) for axes in figure.axes
           for part in (axes.title, *axes.images, *axes.texts)]
  assert len(boxes) == 11 * 11
  assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
  width, height = figure.get_size_inches() * figure.dpi
  assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


def test_the_grid_shows_colours_and_that_there_is_no_image():
  image = np.random.default_rng(0).integers(0, 256, (1, 3, 3, 3)).astype(np.uint8)
  axes, = explore.grid(image, np.array([0]), {}, ['cat']).axes
  np.testing.assert_array_equal(axes.images[0].get_array(), image[0])
  nothing, = explore.grid(
      image[:0], np.array([], int), {'final': np.zeros((0, 1))}, ['cat']).axes
  assert [text.get_text() for text in nothing.texts] == ['there is no such image']
