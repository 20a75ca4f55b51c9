"""The logits of a finished run's cohort for each test image, to explore image by image.

    answers = explore.load('runs/digits')
    indices = explore.only_right(answers.logits, answers.labels, ['stage1'])
    figure = explore.grid(answers.images(indices), *answers.of(indices), answers.classes)
"""
import dataclasses
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdih import errors
from kdih.config import fields
from kdih.data import datasets, source as source_lib
from kdih.data.image_folder import FolderSplit
from kdih.phases import networks
from kdih.phases.experiment import Experiment
from kdih.phases.heads import heads_task, load_heads, predict_cohort
from kdih.phases.teacher import load_teacher
from kdih.report.style import GREY, STUDENT, TEACHER, new_figure, shown
from kdih.runtime import run_files
from kdih.runtime.workdir import Workdir
from kdih.training.task import NO_TEACHER

_SIDE = 1.5  # Inches, of an image in a grid.

Logits = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answers:
  """The logits and labels of all test images, in the order of the split.

  Attributes:
    logits: {member: float32 [images, classes]}, from shallow to deep: heads, then `final`.
    labels: int32 [images].
    classes: the names of the classes.
    source: the test split.
  """

  logits: Logits
  labels: np.ndarray
  classes: list[str]
  source: source_lib.Source | FolderSplit

  def images(self, indices: np.ndarray) -> np.ndarray:
    """Returns images before normalisation, uint8 [n, height, width, channels]."""
    if not len(indices):
      return np.zeros((0, *self.source.spec.image_shape), np.uint8)
    return self.source.read(indices)[0]

  def of(self, indices: np.ndarray) -> tuple[np.ndarray, Logits]:
    """Returns the labels [n] and the logits {member: [n, classes]} of some images."""
    return self.labels[indices], {name: z[indices] for name, z in self.logits.items()}


def load(path: epath.PathLike, data_dir: str = '') -> Answers:
  """Computes the logits of a run's teacher and heads for the test images.

  Nothing is written to the workdir.

  Args:
    path: a workdir with finished heads; in a sweep, the folder of the teacher.
    data_dir: the folder of the data set, if it is not the `config.data.data_dir` of the run.

  Raises:
    ConfigError: there is no such run.
    DataError: the data set is missing.
  """
  workdir = Workdir(path)
  config = _config(workdir)
  if data_dir:
    config.data.data_dir = data_dir
  builder = datasets.prepare(datasets.open_builder(config.data))
  built = networks.build(config, datasets.describe(builder, config.data))
  experiment = Experiment(config, built, workdir, source_lib.open_splits(builder, config.data))
  teacher, owner = load_teacher(experiment)
  heads, _ = load_heads(experiment, owner)
  task = heads_task(built, teacher, experiment.data.preprocess, NO_TEACHER, {})
  logits, labels = predict_cohort(experiment, task, heads, 'test')
  return Answers(logits, labels, builder.info.features[config.data.label_key].names,
                 source_lib.open_split(builder, 'test_split', config.data))


def _config(workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns the config of the run, without students."""
  manifest = run_files.read(workdir.path / 'manifest.json', run_files.Manifest)
  if not manifest or not workdir.result('heads'):
    raise errors.ConfigError(f'path: {workdir.path} holds no run with finished heads; give the '
                             'workdir of a run, such as runs/digits')
  config = fields.base()  # Fields that are newer than the run have their defaults.
  with config.ignore_type():  # JSON has no tuples.
    config.update(manifest['config'])
  config.student.methods = ()
  return config


def only_right(logits: Logits, labels: np.ndarray, members: Sequence[str]) -> np.ndarray:
  """Returns the images that at least one of `members`, and no other member, classifies correctly.

  Args:
    logits: {member: [images, classes]}, for all members of the cohort.
    labels: int [images].
    members: names of some of the members.

  Returns:
    Indices of images, int [n], sorted by the mean probability that `members` give to the label; the
    highest is first.
  """
  correct = {name: z.argmax(-1) == labels for name, z in logits.items()}
  no_image = np.zeros(len(labels), bool)
  by_members = np.any([no_image, *(correct[name] for name in members)], axis=0)
  by_others = np.any([no_image, *(correct[name] for name in logits if name not in members)], axis=0)
  indices = np.flatnonzero(by_members & ~by_others)
  certainty = sum((_probabilities(logits[name][indices], labels[indices]) for name in members),
                  start=np.zeros(len(indices)))
  return indices[np.argsort(-certainty, kind='stable')]


def _probabilities(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Returns the probability of one class for each image, [images]."""
  return np.asarray(jax.nn.softmax(logits))[np.arange(len(classes)), classes]


def grid(
    images: np.ndarray, labels: np.ndarray, logits: Logits, classes: Sequence[str]
) -> Figure:
  """Returns a picture of images with their labels and the members' predictions.

  The label is above the image. Below it is a line for each member: the predicted class and its
  probability, blue if the prediction is correct, and orange if it is wrong.

  Args:
    images: uint8 [n, height, width, channels].
    labels: int [n].
    logits: {member: [n, classes]}.
    classes: the names of the classes.
  """
  if not len(images):
    return _no_image()
  predictions = [[_prediction(name, z[at], label, classes) for name, z in logits.items()]
                 for at, label in enumerate(labels)]
  letters = max((len(words) for lines in predictions for words, _ in lines), default=0)
  # In inches: the label, and an image with its lines; a row is at most 11 inches wide.
  title = 0.3
  width = max(_SIDE + 0.3, 0.075 * letters)
  height = title + _SIDE + 0.16 * len(logits) + 0.15
  columns = min(len(images), int(11.0 / width))
  figure = new_figure(columns * width, -(-len(images) // columns) * height)
  figure.set_layout_engine('none')  # The constrained layout lets lines overlap the next image.
  for at, image in enumerate(images):
    row, column = divmod(at, columns)
    axes = _panel(figure, column * width + (width - _SIDE) / 2, row * height + title)
    axes.imshow(image, cmap='gray', vmin=0, vmax=255)  # Images in colour ignore the colour map.
    axes.set_title(shown(classes[labels[at]]), fontsize=10)
    for line, (words, correct) in enumerate(predictions[at]):
      axes.annotate(words, (0.5, 0), xytext=(0, -3 - 11 * line), xycoords='axes fraction',
                    textcoords='offset points', ha='center', va='top', fontsize=8,
                    color=TEACHER if correct else STUDENT)
  return figure


def _panel(figure: Figure, left: float, top: float) -> Axes:
  """Returns axes for an image, at this distance in inches from the left and top of the figure."""
  width, height = figure.get_size_inches()
  axes = figure.add_axes(
      (left / width, 1 - (top + _SIDE) / height, _SIDE / width, _SIDE / height))
  axes.set_axis_off()
  return axes


def _no_image() -> Figure:
  figure = new_figure(3, 0.5)
  axes = figure.add_subplot()  # Notebooks show no figure without axes.
  axes.set_axis_off()
  axes.text(0.5, 0.5, 'there is no such image', ha='center', va='center', color=GREY)
  return figure


def _prediction(
    member: str, logits: np.ndarray, label: int, classes: Sequence[str]
) -> tuple[str, bool]:
  """Returns a member's prediction in words, and whether it is correct."""
  choice = int(logits.argmax())
  probability, = _probabilities(logits[None], np.array([choice]))
  words = f'{shown(member)}: {shown(classes[choice])}, {100 * probability:.0f} %'
  return words, choice == label
