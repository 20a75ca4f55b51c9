"""A comparison as one HTML page that holds its pictures and opens without a network."""
import base64
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

from kdih.report import findings, tables
from kdih.report.aggregate import Pair
from kdih.report.comparison_plots import Picture, headings

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader('kdih.report'), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def page(
    title: str, pairs: Sequence[Pair], pictures: Sequence[Picture], folder: epath.PathLike,
    problems: Sequence[str], provenance: Sequence[str],
) -> str:
  """Returns the page as HTML, from the template `templates/page.html.jinja`.

  Args:
    title: of the page.
    pairs: what was compared.
    pictures: the pictures that `comparison_plots.draw` returned for these pairs.
    folder: the folder that holds the SVG files of the pictures.
    problems: a line for each run that is missing or was left out.
    provenance: lines with the commands, code versions and machines of the runs.
  """
  def source(picture: Picture) -> str:
    content = (epath.Path(folder) / f'{picture.name}.svg').read_bytes()
    return f'data:image/svg+xml;base64,{base64.b64encode(content).decode()}'

  own = headings(pairs)
  return _ENVIRONMENT.get_template('page.html.jinja').render(
      title=title, problems=problems, provenance=provenance, pictures=pictures, source=source,
      pairs=[_section(pair, heading) for pair, heading in zip(pairs, own, strict=True)],
      # Pictures of several pairs, and of cohorts.
      other_sections=dict.fromkeys(p.section for p in pictures if p.section not in own))


def _section(pair: Pair, heading: str) -> dict[str, Any]:
  header, *rows = tables.cells(pair)
  return {'heading': heading, 'title': tables.title(pair), 'caption': tables.caption(pair),
          'findings': findings.findings(pair), 'header': header, 'rows': rows}
