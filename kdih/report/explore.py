"""What each member of a finished run's cohort says of each test image, to look at image by image.

    answers = explore.load('runs/digits')
    found = explore.only_right(answers.logits, answers.labels, ['stage1'])
    figure = explore.grid(answers.images(found), *answers.of(found), answers.classes)
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
from kdih.phases import networks
from kdih.phases.experiment import Experiment
from kdih.phases.heads import heads_task, load_heads, predict_cohort
from kdih.phases.teacher import load_teacher
from kdih.report.style import GREY, STUDENT, TEACHER, new_figure, shown
from kdih.runtime import run_files
from kdih.runtime.workdir import Workdir
from kdih.training.task import LABELS

_SIDE = 1.5  # Inches, of an image in a grid.

Logits = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answers:
  """What the cohort says of the test images, in the order of the split.

  Attributes:
    logits: {member: float32 [images, classes]}, from shallow to deep: heads, then `final`.
    labels: int32 [images].
    classes: their names.
    source: the test split.
  """

  logits: Logits
  labels: np.ndarray
  classes: list[str]
  source: source_lib.Source

  def images(self, indices: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, channels], before they are normalised."""
    if not len(indices):
      return np.zeros((0, *self.source.spec.image_shape), np.uint8)
    return self.source.read(indices)[0]

  def of(self, indices: np.ndarray) -> tuple[np.ndarray, Logits]:
    """Labels [n] and logits {member: [n, classes]} of some of the images."""
    return self.labels[indices], {name: z[indices] for name, z in self.logits.items()}


def load(path: epath.PathLike, data_dir: str = '') -> Answers:
  """Shows the test images to teacher and heads of a run; nothing is written to its workdir.

  Args:
    path: a workdir whose heads are finished; of a sweep, that of the teacher.
    data_dir: where the data set is, if not where the run had it (`config.data.data_dir`).

  Raises:
    ConfigError: there is no such run.
    DataError: its data set is not there.
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
  task = heads_task(built, teacher, experiment.data.preprocess, LABELS, {})
  logits, labels = predict_cohort(experiment, task, heads, 'test')
  return Answers(logits, labels, builder.info.features[config.data.label_key].names,
                 source_lib.open_split(builder, 'test_split', config.data))


def _config(workdir: Workdir) -> ml_collections.ConfigDict:
  """That of the run, without its students."""
  manifest = run_files.read(workdir.path / 'manifest.json', run_files.Manifest)
  if not manifest or not workdir.result('heads'):
    raise errors.ConfigError(f'path: {workdir.path} holds no run with finished heads; give the '
                             'workdir of one, such as runs/digits')
  config = fields.base()  # A field that kdih did not have yet had its default.
  with config.ignore_type():  # JSON has no tuples.
    config.update(manifest['config'])
  config.student.methods = ()
  return config


def only_right(logits: Logits, labels: np.ndarray, members: Sequence[str]) -> np.ndarray:
  """The images that one of `members` at least gets right, and nobody else.

  Args:
    logits: [images, classes] of all members.
    labels: int [images].
    members: names of some of them.

  Returns:
    int [n], those images first to whose label `members` give the highest mean probability.
  """
  right = {name: z.argmax(-1) == labels for name, z in logits.items()}
  nobody = np.zeros(len(labels), bool)
  ours = np.any([nobody, *(right[name] for name in members)], axis=0)
  others = np.any([nobody, *(right[name] for name in logits if name not in members)], axis=0)
  found = np.flatnonzero(ours & ~others)
  certainty = sum((_probabilities(logits[name][found], labels[found]) for name in members),
                  start=np.zeros(len(found)))
  return found[np.argsort(-certainty, kind='stable')]


def _probabilities(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Of one class of each image, [images]."""
  return np.asarray(jax.nn.softmax(logits))[np.arange(len(classes)), classes]


def grid(
    images: np.ndarray, labels: np.ndarray, logits: Logits, classes: Sequence[str]
) -> Figure:
  """The images, above each its label, below what every member says and how sure it is.

  What is right is blue, what is wrong orange.

  Args:
    images: uint8 [n, height, width, channels].
    labels: int [n].
    logits: {member: [n, classes]}.
    classes: their names.
  """
  if not len(images):
    return _no_image()
  said = [[_answer(name, z[at], label, classes) for name, z in logits.items()]
          for at, label in enumerate(labels)]
  letters = max((len(words) for lines in said for words, _ in lines), default=0)
  # Inches: the line above an image, room for one with all that is said of it, at most 11 across.
  title = 0.3
  width = max(_SIDE + 0.3, 0.075 * letters)
  height = title + _SIDE + 0.16 * len(logits) + 0.15
  columns = min(len(images), int(11.0 / width))
  figure = new_figure(columns * width, -(-len(images) // columns) * height)
  figure.set_layout_engine('none')  # The usual one lets lines below an image run into others.
  for at, image in enumerate(images):
    row, column = divmod(at, columns)
    axes = _panel(figure, column * width + (width - _SIDE) / 2, row * height + title)
    axes.imshow(image, cmap='gray', vmin=0, vmax=255)  # The colour map is of grey images.
    axes.set_title(shown(classes[labels[at]]), fontsize=10)
    for line, (words, right) in enumerate(said[at]):
      axes.annotate(words, (0.5, 0), xytext=(0, -3 - 11 * line), xycoords='axes fraction',
                    textcoords='offset points', ha='center', va='top', fontsize=8,
                    color=TEACHER if right else STUDENT)
  return figure


def _panel(figure: Figure, left: float, top: float) -> Axes:
  """Room for an image, so many inches from the left and the top of the figure."""
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


def _answer(
    member: str, logits: np.ndarray, label: int, classes: Sequence[str]
) -> tuple[str, bool]:
  """What a member says of an image, in words, and whether it is right."""
  choice = int(logits.argmax())
  probability, = _probabilities(logits[None], np.array([choice]))
  words = f'{shown(member)}: {shown(classes[choice])}, {100 * probability:.0f} %'
  return words, choice == label
