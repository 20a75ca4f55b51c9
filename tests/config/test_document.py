"""README.md lists all fields as they are declared."""
import pathlib
import re
import subprocess
import sys

from kdih.config import __main__ as document
from kdih.config.fields import FIELDS, GROUPS, TRAININGS
from tests.helpers.runs import ROOT

README = pathlib.Path(document.__file__).with_name('README.md')


def test_the_list_is_fresh():
  """If not: `python -m kdih.config > kdih/config/README.md`."""
  printed = subprocess.run([sys.executable, '-m', 'kdih.config'], capture_output=True, text=True,
                           check=True, cwd=ROOT).stdout
  assert printed == README.read_text()


def rows() -> list[list[str]]:
  """The cells of every row of the tables of fields."""
  lines = README.read_text().partition('\n## Recipes')[0].splitlines()
  cells = [re.split(r'(?<!\\) \| ', line.removeprefix('| ').removesuffix(' |'))
           for line in lines if line.startswith('| `')]
  assert {len(row) for row in cells} == {6} and all(all(row) for row in cells)
  return cells


def test_every_field_has_a_row_with_its_default():
  found = {row[0].strip('`'): row for row in rows()}
  assert len(found) == len(rows())
  for name, field in FIELDS.items():
    group, _, key = name.rpartition('.')
    row = found[key if group in TRAININGS else name]
    assert repr(field.default) in row[1] and field.kind.words in row[3]
  assert len(found) == len(FIELDS) - 3 * 13  # The fields of a training are shown once for all four.


def test_what_is_shown_once_for_all_trainings_is_the_same_for_all():
  for name, field in FIELDS.items():
    group, _, key = name.rpartition('.')
    if group in TRAININGS:
      shown = FIELDS[f'student.train.{key}']
      assert (field.kind, field.doc, field.resume) == (shown.kind, shown.doc, shown.resume)


def test_every_group_has_a_section():
  groups = {name.rpartition('.')[0] for name in FIELDS}
  assert groups - {''} == set(GROUPS)
  titles = ', '.join(re.findall('^## (.*)$', README.read_text(), re.MULTILINE)).split(', ')
  assert {f'config.{group}' if group else 'config' for group in groups} < set(titles)
  assert len(set(titles)) == len(titles)


def test_the_commands_and_links_it_shows_are_right():
  text = README.read_text()
  for target in re.findall(r'\]\(([^)]+)\)', text):
    assert (README.parent / target).exists(), target
  assert 'kdih/config/README.md' in (ROOT / 'README.md').read_text()
