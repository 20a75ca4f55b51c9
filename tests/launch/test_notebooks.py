"""The notebooks: as they are stored, and executed from a clean kernel on digits."""
import ast
import os
import pathlib
import re

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from kdih.report import explore, run_report
from kdih.runtime import run_files
from tests.helpers.runs import ROOT

NOTEBOOKS = sorted((ROOT / 'launch/colab').glob('*.ipynb'))
FIELD = re.compile(r'^(\w+) = (.*?)  #@param (.*)$', re.MULTILINE)  # As Colab reads them.
BADGE = re.compile(r'\]\(https://colab\.research\.google\.com/github/(\w+/\w+)/blob/main/(.*?)\)')

every_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def fields(notebook: nbformat.NotebookNode) -> list[tuple[str, str, str]]:
  """Name, value and description of every form field."""
  return [found for cell in code_of(notebook) for found in FIELD.findall(cell.source)]


def test_both_notebooks_are_looked_at():
  assert [path.stem for path in NOTEBOOKS] == ['cohort_explorer', 'quickstart']


@every_notebook
def test_a_notebook_is_valid_and_stored_without_what_it_put_out(path):
  notebook = read(path)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  for cell in code_of(notebook):
    assert not cell.outputs and cell.execution_count is None


@every_notebook
def test_every_code_cell_parses(path):
  for cell in code_of(read(path)):
    ast.parse(TransformerManager().transform_cell(cell.source))


@every_notebook
def test_the_badge_in_the_first_cell_opens_this_notebook_of_the_repository_it_installs(path):
  notebook = read(path)
  repository, place = BADGE.search(notebook.cells[0].source).groups()
  assert ROOT / place == path
  values = {name: value for name, value, _ in fields(notebook)}
  assert values['repository'] == f'"https://github.com/{repository}"'


@every_notebook
def test_the_first_value_of_a_form_field_is_one_that_the_form_offers(path):
  notebook = read(path)
  assert len(fields(notebook)) == str(notebook).count('#@param') > 3
  for name, value, description in fields(notebook):
    value = ast.literal_eval(value)
    if choices := re.match(r'\[.*?\]', description):
      assert value in ast.literal_eval(choices[0]), name
    else:
      assert f'type:"{ {str: "string", int: "integer"}[type(value)] }"' in description, name


def execute(
    path: pathlib.Path, folder: pathlib.Path, values: dict[str, object], first: str = '',
    *import_from: pathlib.Path,
) -> nbformat.NotebookNode:
  """The notebook after it ran in `folder`, its form filled in, the code `first` before it."""
  notebook = read(path)
  assert values.keys() <= {name for name, *_ in fields(notebook)}
  for cell in code_of(notebook):
    cell.source = FIELD.sub(lambda found: f'{found[1]} = {values[found[1]]!r}'
                            if found[1] in values else found[0], cell.source)
  notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
  places = [*map(str, import_from), os.environ.get('PYTHONPATH')]
  environment = {**os.environ, 'IPYTHONDIR': str(folder / 'ipython'),
                 'PYTHONPATH': os.pathsep.join(filter(None, places))}
  client = nbclient.NotebookClient(
      notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(folder)}})
  return client.execute(env=environment)


def text(notebook: nbformat.NotebookNode) -> str:
  return ''.join(output.get('text', '') for cell in code_of(notebook) for output in cell.outputs)


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
  """The id of a cell for each picture that it shows."""
  return [cell.id for cell in code_of(notebook) for output in cell.outputs
          if 'image/png' in output.get('data', {})]


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory, digits_dir) -> tuple[nbformat.NotebookNode, pathlib.Path]:
  """The notebook after it ran where JAX had been used already, and its workdir."""
  folder = tmp_path_factory.mktemp('quickstart')
  notebook = execute(
      ROOT / 'launch/colab/quickstart.ipynb', folder,
      {'config': 'digits.py:runlocal', 'teacher': 'tests.helpers.tiny_nets:TinyNet',
       'methods': 'ce,dih', 'workdir': 'w', 'data_dir': digits_dir},
      'import jax; jax.devices()', ROOT)
  return notebook, folder / 'w'


@pytest.mark.slow
def test_the_quickstart_trains_what_was_chosen_and_shows_it(quickstart):
  notebook, workdir = quickstart
  results = run_files.read(workdir / 'results.json', run_files.Results)
  assert results['teacher']['model'] == 'tests.helpers.tiny_nets:TinyNet'
  assert list(results['student']) == ['ce', 'dih']
  assert run_report.table(results) in text(notebook)
  assert pictures(notebook) == ['pictures', 'pictures', 'student']


@pytest.mark.slow
def test_the_explorer_shows_the_run_of_the_quickstart_and_leaves_it_as_it_was(
    quickstart, tmp_path):
  workdir = quickstart[1]
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  notebook = execute(ROOT / 'launch/colab/cohort_explorer.ipynb', tmp_path,
                     {'workdir': str(workdir), 'shallow': 2, 'at_most': 3}, '', ROOT)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
  assert pictures(notebook) == ['depth', 'agreement', 'without', 'only', 'only']
  answers = explore.load(workdir)
  right = {name: z.argmax(-1) == answers.labels for name, z in answers.logits.items()}
  shallow, deep = right['stage1'] | right['stage2'], right['final']
  for group, count in (('shallow', (shallow & ~deep).sum()), ('deep', (deep & ~shallow).sum())):
    assert f'{count} of 128 test images: only the {group} members are right' in text(notebook)


@pytest.mark.slow
def test_the_explorer_trains_a_run_of_its_own_without_tensorflow(tmp_path, digits_dir):
  blocked = tmp_path / 'blocked'
  blocked.mkdir()
  (blocked / 'tensorflow.py').write_text('raise ImportError("blocked")')
  notebook = execute(ROOT / 'launch/colab/cohort_explorer.ipynb', tmp_path,
                     {'config': 'digits.py:runlocal', 'data_dir': digits_dir}, '', blocked)
  assert 'no TensorBoard events: blocked' in text(notebook)
  assert pictures(notebook) == ['depth', 'agreement', 'without', 'only', 'only']
  results = run_files.read(tmp_path / 'runs/explorer/results.json', run_files.Results)
  assert list(results) == ['teacher', 'heads']
