"""Elements of a self-contained HTML page: its frame and style sheet, tables, figures and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from lit_gfs.study.results.comparisons import ITSELF

_STYLE = """
:root { --ink: #1c1e21; --soft: #62676e; --line: #d9dce0; --paper: #fff; --tint: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 Charter, "Bitstream Charter", "Liberation Serif", Georgia, serif; }
main { max-width: 1180px; margin: 0 auto; padding: 48px 28px 80px; }
h1, h2, h3, summary, table, .chip, figcaption, nav {
  font-family: "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1 { font-size: 30px; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 52px 0 8px; padding-top: 14px; border-top: 2px solid var(--ink); }
h3 { font-size: 15px; margin: 26px 0 6px; }
p, ul { max-width: 860px; }
.lead { font-size: 18px; color: var(--soft); margin-top: 0; }
nav { font-size: 13px; margin: 14px 0; } nav a { margin-right: 16px; color: #0b5394; text-decoration: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.35; margin: 8px 0 18px; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 9px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); color: var(--ink); vertical-align: bottom; }
tr.set td { background: var(--tint); font-weight: 600; }
tr.new td { border-top: 1.5px solid #9aa0a6; }
td .range { display: block; color: var(--soft); font-size: 11.5px; white-space: nowrap; }
td .note { display: block; } td .beside { white-space: nowrap; }
td:first-child { white-space: nowrap; }
.note { color: var(--soft); font-style: italic; font-size: 11.5px; }
.note .chip { font-style: normal; }
.chip { display: inline-block; font-size: 11px; border-radius: 9px; padding: 0 8px; white-space: nowrap;
  background: #e6e8eb; color: #3c4043; }
.chip.met { background: #d5ecdf; color: #0b5d38; } .chip.alone { background: #fbeccb; color: #7a4d00; }
.chip.unmet { background: #f7d9d5; color: #8c1d13; }
.small { font-size: 13px; color: var(--soft); }
.pair { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); gap: 28px; align-items: start; }
.pair figure { margin-top: 0; } .pair th, .pair td { padding: 4px 5px; }
section:first-of-type h2 { margin-top: 18px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
figure { margin: 12px 0 22px; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 12.5px; color: var(--soft); max-width: 860px; }
details { margin: 10px 0; } summary { cursor: pointer; font-size: 15px; font-weight: 600; padding: 4px 0; }
pre { background: var(--tint); padding: 12px 16px; font-size: 13px; overflow-x: auto; white-space: pre-wrap; }
@media (max-width: 900px) { .pair { display: block; } }
@media (max-width: 600px) { main { padding: 24px 14px 60px; } h1 { font-size: 25px; }
  h2 { margin-top: 36px; } body, .lead { font-size: 15px; }
  figure .scroll img { max-width: none; width: 760px; } }
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Put sections of HTML into a page without external files."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def section(key: str, title: str, explanation: str, *content: str) -> str:
    """Make a section; ``explanation`` and ``content`` are HTML."""
    return "\n".join(
        [f'<section id="{key}"><h2>{escape(title)}</h2><p>{explanation}</p>', *content, "</section>"]
    )


def details(title: str, is_open: bool, *content: str) -> str:
    """Make a part that opens and closes; ``content`` is HTML."""
    return "\n".join(
        [f"<details{' open' * is_open}><summary>{escape(title)}</summary>", *content, "</details>"]
    )


def picture(source: str, description: str, caption: str, fits: bool = False) -> str:
    """Show a figure.

    Args:
        source: A data URI.
        description: What the figure shows, for those who cannot see it.
        caption: Text below it.
        fits: Whether it is readable on a telephone. Another figure keeps its width there, and scrolls.
    """
    image = f'<img src="{source}" alt="{escape(description)}">'
    shown = image if fits else f'<div class="scroll">{image}</div>'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def beside(left: str, right: str) -> str:
    """Put two parts beside each other, or one below the other on a narrow screen."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def chip(text: str, kind: str = "", title: str = "") -> str:
    """Write a word on a coloured ground.

    Args:
        text: The word.
        kind: ``met`` (green), ``alone`` (yellow), ``unmet`` (red), or empty (grey).
        title: What it says on hovering.
    """
    shown = f' title="{escape(title)}"' if title else ""
    return f'<span class="chip {kind}"{shown}>{escape(text)}</span>'


def table(header: Sequence[str], rows: Sequence[Sequence[str] | str]) -> str:
    """Make a table of cells of HTML.

    Args:
        header: Titles of the columns.
        rows: Rows of cells; a string instead of a row is a heading within the table. A row with a first cell
            that is not empty begins a new block.
    """
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"]
    for row in rows:
        if isinstance(row, str):
            lines.append(f'<tr class="set"><td colspan="{len(header)}">{row}</td></tr>')
        else:
            begins = ' class="new"' if row[0] else ""
            lines.append(f"<tr{begins}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def number(value: float) -> str:
    """Write a number for people: 3 significant digits, thousands in full."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def short(value: float) -> str:
    """Write a number with 2 significant digits."""
    return f"{value:.2g}"


def decimals(value: float) -> str:
    """Write a number with two decimals."""
    return f"{value:.2f}"


def signed(value: float) -> str:
    """Write a difference with its sign and two decimals."""
    return f"{value:+.2f}"


def percent(value: float) -> str:
    """Write a share in percent."""
    return f"{100 * value:.0f}%"


def interval_text(figure: dict[str, Any], form: Callable[[float], str]) -> str:
    """Write the interval of an estimate, as in ``[0.97, 1.20]``; an unbounded end as infinity."""
    low, high = figure["interval"]
    return f"[{'−∞' if low is None else form(low)}, {'∞' if high is None else form(high)}]"  # noqa: RUF001


def estimate_text(figure: dict[str, Any], form: Callable[[float], str]) -> str:
    """Write an estimate in a sentence: its value and interval, or why it has none."""
    if figure["value"] is None:
        return f"undefined ({escape(figure['note'])})"
    ending = f"({escape(figure['note'])})" if figure["interval"] is None else interval_text(figure, form)
    return f"{form(figure['value'])} {ending}"


def estimate_cell(figure: dict[str, Any], form: Callable[[float], str], strata: int = 1) -> str:
    """Write an estimate in a table: its value above its interval, or why it has none.

    Args:
        figure: The estimate.
        form: Writes its numbers.
        strata: Number of strata that it could cover; the cell notes if it covers fewer.
    """
    if figure["value"] is None:
        note = "&ndash;" if figure["note"] == ITSELF else escape(figure["note"])
        return f'<span class="note">{note}</span>'
    below = escape(figure["note"]) if figure["interval"] is None else interval_text(figure, form)
    covers = f'<span class="note">{figure["strata"]} of {strata} tasks</span>' * (figure["strata"] < strata)
    return f'{form(figure["value"])}<span class="range">{below}</span>{covers}'
