"""The report as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import yaml

from cgspn.reports.pictures import Sheet, as_png, contact_sheet
from cgspn.reports.rows import DASH, decimal
from cgspn.reports.runs import Run

TITLE = "Segmentation report"


@dataclasses.dataclass
class Figure:
    """A plot: ``name`` of its file, heading, one sentence, PNG file."""

    name: str
    heading: str
    text: str
    png: bytes


@dataclasses.dataclass
class Content:
    """All that a report says, before it has a form.

    Attributes:
        subtitle: When, on what machine, with what versions.
        header: Columns of the results.
        cells: Rows of the results.
        caption: What the columns mean.
        labels: Label of each row.
        classes: Name of each class, its share of the pixels and each row's IoU.
        sheet: Pictures with truth and predictions.
        figures: Plots.
        runs: All runs that went into it.
        notes: What could not be read or measured.
    """

    subtitle: list[str]
    header: list[str]
    cells: list[list[str]]
    caption: list[str]
    labels: list[str]
    classes: list[tuple[str, float, list[float | None]]]
    sheet: Sheet | None
    figures: list[Figure]
    runs: list[Run]
    notes: list[str]


def write(content: Content, out: Path) -> Path:
    """Writes both forms and returns the path of the HTML page."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for figure in content.figures:
        (folder / f"{figure.name}.png").write_bytes(figure.png)
    if content.sheet is not None:
        (folder / "pictures.png").write_bytes(contact_sheet(content.sheet))
    (out / "report.md").write_text(markdown(content), encoding="utf-8")
    page = out / "report.html"
    page.write_text(webpage(content), encoding="utf-8")
    return page


def markdown(content: Content) -> str:
    """The report in Markdown; pictures are files in ``figures/``."""
    lines = [f"# {TITLE}", "", " · ".join(content.subtitle), ""]
    lines += markdown_table(content.header, content.cells)
    lines += ["", *(f"{line}  " for line in content.caption)]
    if content.sheet is not None:
        lines += ["", "## Pictures", "", "From left to right: " + ", ".join(content.sheet.header) + "."]
        lines += ["", "![pictures, truth and predictions](figures/pictures.png)"]
    if content.classes:
        lines += ["", "## IoU per class", ""]
        cells = [[name, decimal(share), *map(decimal, values)] for name, share, values in content.classes]
        lines += markdown_table(["class", "% of pixels", *content.labels], cells)
    for figure in content.figures:
        lines += [
            "",
            f"## {figure.heading}",
            "",
            figure.text,
            "",
            f"![{figure.heading}](figures/{figure.name}.png)",
        ]
    lines += ["", "## Runs", ""]
    lines += [f"- {run.name}: {run.kind or 'unknown module'}, `{run.folder}`" for run in content.runs]
    if content.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in content.notes)]
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, numbers to the right."""
    clean = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    ruler = ["---", *(["---:"] * (len(header) - 1))]
    return ["| " + " | ".join(row) + " |" for row in [clean[0], ruler, *clean[1:]]]


def webpage(content: Content) -> str:
    """The report as one page with its style and pictures inside."""
    style = importlib.resources.files("cgspn.reports").joinpath("report.css").read_text(encoding="utf-8")
    sections = [results(content)]
    if content.sheet is not None:
        sections.append(picture_table(content.sheet))
    if content.classes:
        sections.append(class_heat(content))
    sections += [
        f"<section><h2>{escape(figure.heading)}</h2><p>{escape(figure.text)}</p>"
        f'<div class="scroll"><img class="plot" alt="{escape(figure.heading)}" '
        f'src="{data_uri(figure.png)}"></div></section>'
        for figure in content.figures
    ]
    sections.append(run_list(content.runs))
    if content.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
        sections.append(f"<section><h2>Notes</h2><ul>{items}</ul></section>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{TITLE}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<header><h1>{TITLE}</h1>"
        f"<p>{'<br>'.join(map(escape, content.subtitle))}</p></header>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def results(content: Content) -> str:
    """The table of results."""
    body = []
    for row in content.cells:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    notes = "".join(f"<li>{escape(line)}</li>" for line in content.caption)
    return (
        f"<section><h2>Results</h2>{scrolled(head(content.header), ''.join(body))}"
        f'<ul class="caption">{notes}</ul></section>'
    )


def class_heat(content: Content) -> str:
    """IoU by class, its background darker the higher it is."""
    body = []
    for name, share, values in content.classes:
        cells = "".join(
            f"<td>{DASH}</td>" if v is None else f'<td style="--heat:{v:.0f}%">{v:.1f}</td>' for v in values
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th><td>{share:.1f}</td>{cells}</tr>')
    table = scrolled(head(["class", "% of pixels", *content.labels]), "".join(body), "heat")
    return (
        f"<section><h2>IoU per class</h2><p>Classes present in the ground truth, largest first.</p>"
        f"{table}</section>"
    )


def picture_table(sheet: Sheet) -> str:
    """Pictures, truth and predictions side by side."""
    body = []
    for name, images in sheet.lines:
        cells = "".join(
            f"<td>{DASH}</td>"
            if image is None
            else f'<td><img alt="{escape(f"{title}: {name}")}" src="{data_uri(as_png(image))}"></td>'
            for title, image in zip(sheet.header, images, strict=True)
        )
        body.append(f"<tr>{cells}</tr>")
    legend = "".join(
        f'<li><i style="background:rgb{colour}"></i>{escape(name)}</li>' for name, colour in sheet.legend
    )
    table = scrolled(head(sheet.header), "".join(body), "pictures")
    return f'<section><h2>Pictures</h2>{table}<ul class="legend">{legend}</ul></section>'


def run_list(runs: Sequence[Run]) -> str:
    """Every run with its config."""
    items = "".join(
        f"<details><summary>{escape(run.name)} <small>{escape(run.kind)}</small></summary>"
        f"<p><code>{escape(str(run.folder))}</code></p>"
        f"<pre>{escape(yaml.safe_dump(run.config, sort_keys=False))}</pre></details>"
        for run in runs
    )
    return f"<section><h2>Runs</h2>{items}</section>"


def head(header: Sequence[str]) -> str:
    """A table's header row."""
    return "<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in header) + "</tr>"


def scrolled(header: str, body: str, kind: str = "") -> str:
    """A table that scrolls sideways where the page is too narrow."""
    table = f'<table class="{kind}"><thead>{header}</thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def data_uri(png: bytes) -> str:
    """A PNG file as an inline address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def escape(text: str) -> str:
    """Text that is safe inside HTML."""
    return html.escape(text)
