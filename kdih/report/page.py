"""A comparison as one HTML page that needs nothing beside it."""
import base64
import html
from collections.abc import Iterator, Sequence

from etils import epath

from kdih.report import findings, tables
from kdih.report.aggregate import Pair
from kdih.report.comparison_plots import Picture, headings

_STYLE = '''
:root { color-scheme: light dark; --ink: #1a1a1a; --pale: #666; --line: #ccc; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --pale: #a0a0a0; --line: #444; --back: #161616; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
       max-width: 80rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.note, figcaption { color: var(--pale); font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6rem;
         max-width: 14rem; position: sticky; left: 0; background: var(--back); }
td:last-child, th:last-child { text-align: left; white-space: normal; min-width: 14rem; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
@media (max-width: 50rem) { img { max-width: 45rem; } }
@media print {
  body { max-width: none; } img { max-width: 100%; } figure, tr { break-inside: avoid; }
}
'''


def page(
    title: str, pairs: Sequence[Pair], pictures: Sequence[Picture], folder: epath.PathLike,
    problems: Sequence[str], provenance: Sequence[str],
) -> str:
  """The page, as text.

  Args:
    title: of the page.
    pairs: what was compared.
    pictures: of them, drawn by `comparison_plots.draw`.
    folder: where their SVG files are.
    problems: lines.
    provenance: lines.
  """
  folder = epath.Path(folder)
  own = headings(pairs)
  parts: list[str] = []
  for pair, heading in zip(pairs, own, strict=True):
    parts += [f'<h2>{html.escape(heading)}</h2>',
              *(f'<p>{html.escape(sentence)}</p>' for sentence in findings.findings(pair)),
              _table(pair),
              *_figures([p for p in pictures if p.section == heading], folder)]
  # Pictures of more than one pair, and of cohorts.
  for section in dict.fromkeys(p.section for p in pictures if p.section not in own):
    parts += [f'<h2>{html.escape(section)}</h2>',
              *_figures([p for p in pictures if p.section == section], folder)]
  parts += _list('What is missing or was left out', problems)
  parts += _list('Provenance', provenance)
  return '\n'.join([
      '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{title}</title>', f'<style>{_STYLE}</style>', '</head>', '<body>',
      f'<h1>{title}</h1>', *parts, '</body>', '</html>']) + '\n'


def _table(pair: Pair) -> str:
  header, *rows = tables.cells(pair)
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
  body = '\n'.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in row) + '</tr>'
                   for row in rows)
  return (f'<p class="note">{html.escape(tables.caption(pair))}</p>\n'
          f'<div class="wide"><table aria-label="{html.escape(tables.title(pair))}">\n'
          f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')


def _figures(pictures: Sequence[Picture], folder: epath.Path) -> Iterator[str]:
  for picture in pictures:
    content = base64.b64encode((folder / f'{picture.name}.svg').read_bytes()).decode()
    yield (f'<figure><div class="wide"><img src="data:image/svg+xml;base64,{content}" '
           f'alt="{html.escape(picture.title)}"></div>'
           f'<figcaption><strong>{html.escape(picture.title)}.</strong> '
           f'{html.escape(picture.text)}</figcaption></figure>')


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
  if lines:
    yield f'<h2>{html.escape(title)}</h2>'
    yield '<ul>'
    yield from (f'<li><code>{html.escape(line)}</code></li>' for line in lines)
    yield '</ul>'
