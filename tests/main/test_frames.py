"""How far it is from the command line to the loss: a reader has to follow every call."""
import pathlib
import shutil
import traceback

import kdih
from kdih import main
from kdih.methods import dih
from tests.helpers.runs import tiny_command

FOLDER = pathlib.Path(kdih.__file__).parent
MOST = 15  # Functions from `main.main`, which is `program.main`, to the loss; both included.


def test_few_functions_lie_between_the_command_line_and_the_loss(
    tmp_path, finished, digits_dir, monkeypatch):
  paths, loss = [], dih.Method.__call__

  def traced(self, lesson):
    frames = traceback.extract_stack()
    paths.append([f'{pathlib.Path(frame.filename).relative_to(FOLDER)}: {frame.name}'
                  for frame in frames if FOLDER in pathlib.Path(frame.filename).parents])
    return loss(self, lesson)

  monkeypatch.setattr(dih.Method, '__call__', traced)
  shutil.copytree(finished, tmp_path / 'w', ignore=shutil.ignore_patterns('student'))
  assert main.main(
      tiny_command(tmp_path / 'w', digits_dir, '--config.student.methods=dih')) == 0
  stepping = [path for path in paths if any('training/step.py' in frame for frame in path)]
  assert stepping  # Others see what the loss reaches, or what the run is made of.
  for path in stepping:
    # The loss itself is the last one, in whose place the test stands.
    assert path[0] == 'runtime/program.py: main' and len(path) + 1 <= MOST, '\n'.join(path)
