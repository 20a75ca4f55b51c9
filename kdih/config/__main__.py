"""Prints the table of all fields: `python -m kdih.config > kdih/config/README.md`."""
import sys
from collections.abc import Iterator

from kdih.config.fields import FIELDS, GROUPS
from kdih.config.recipes import RECIPES
from kdih.config.schema import BY_TEACHER, FREE, Field

_INTRODUCTION = """\
# Every field of the config

Written by `python -m kdih.config > kdih/config/README.md` from the declarations in
[`fields.py`](fields.py). Set a field in a config file (`config.data.padding = 4`) or on the command
line (`--config.data.padding=4`). A tuple may be written with brackets or without:
`--config.student.methods=ce,kd,dih`, `--config.methods.dih.temperature=(5.0,4.0,3.0,2.0)`.

*Resume* says whether a run resumes after the field was changed; *averaged* whether runs that differ
in it are averaged as seeds of one method. `(part)` marks that only a part of its meaning counts, as
the text says; `teacher` that the teacher's fingerprint is compared in its place.

## Methods

`config.methods.NAME` holds the options of a way to teach the student: `kind`, a file of
[`kdih/methods`](../methods), and all options that its class declares; perhaps a `learning_rate`,
which students taught so take in place of that of `student.train`.
[`method_presets.py`](method_presets.py) holds the entries that there are at first. An entry of your
own is made in the config file, or on the command line:
`--config.methods.mine.kind=kd --config.methods.mine.alpha=0.5 ...`. A run resumes under other
options of methods that it has not begun.
"""


def document() -> str:
  """Returns the content of `README.md`."""
  sections = [_INTRODUCTION]
  for group in ('', *GROUPS):
    fields = {name: field for name, field in FIELDS.items() if name.rpartition('.')[0] == group}
    title = f'config.{group}' if group else 'config'
    sections.append('\n'.join([
        f'## {title}', '', *([GROUPS[group], ''] if group else []),
        '| field | default | values | resume | averaged | |', '|---|---|---|---|---|---|',
        *(_row(name, field) for name, field in fields.items()), '']))
  sections.append('\n'.join(_recipes()))
  return '\n'.join(sections)


def _row(name: str, field: Field) -> str:
  resume = '(part)' if callable(field.resume) else field.resume
  averaged = '(part)' if callable(field.averaged) else field.averaged
  averaged = {BY_TEACHER: 'teacher', FREE: 'yes', 'same': 'no'}.get(averaged, averaged)
  cells = (f'`{name}`', f'`{field.default!r}`', field.kind.words,
           {FREE: 'yes', 'fixed': 'no'}.get(resume, resume), averaged, field.doc)
  return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _recipes() -> Iterator[str]:
  yield '## Recipes\n'
  yield ('`fields.base(recipe)` and the config files take a recipe, such as '
         '`--config=configs/cifar100.py:recipe=repdistiller`. [`recipes.py`](recipes.py) holds in '
         'what they differ:\n')
  yield f'| | {" | ".join(f"`{name}`" for name in RECIPES)} |'
  yield '|---' * (1 + len(RECIPES)) + '|'
  for part, what in (('train', 'every `train`'), ('logits', 'methods that weight logits')):
    for option in RECIPES['paper'][part]:
      values = (f'`{recipe[part][option]!r}`' for recipe in RECIPES.values())
      yield f'| `{option}` of {what} | {" | ".join(values)} |'


if __name__ == '__main__':
  sys.stdout.write(document())
