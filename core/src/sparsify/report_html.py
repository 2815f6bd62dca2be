"""Write report.html from metrics.json: one file, no script, nothing fetched."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from sparsify.plots import bar_plot, line_plot, round_top
from sparsify.report_figures import DASH, Table, bars, cards, dig, number, percent, summary, tables, verdict


def render_html(metrics: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page; everything that comes from files is escaped."""
    tone, title, text = verdict(metrics)
    level, seed = number(metrics.get("optim_level"), ".3g"), number(metrics.get("seed"), "d")
    words = {"tone": tone, "title": title, "text": text, "level": level, "seed": seed, "summary": summary(metrics)}
    words |= {name: metrics.get(name) or DASH for name in ("use_case", "kind")}
    figures, *others = map(_table, tables(metrics))
    body = [_cards(metrics), _bars(metrics), figures, _notes(metrics), *_layer_plots(metrics), *others]
    page, style = (files("sparsify").joinpath(name).read_text("utf-8") for name in ("report.html", "report.css"))
    escaped = {name: _text(word) for name, word in words.items()}
    return Template(page).substitute(escaped, style=style, body="".join(body))


def _text(value: Any) -> str:
    return html.escape(str(DASH if value is None else value))


def _section(title: str, content: str, note: str = "") -> str:
    subtitle = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section>\n<h2>{_text(title)}</h2>{subtitle}\n{content}\n</section>\n"


def _cards(metrics: Mapping[str, Any]) -> str:
    return f'<section class="cards">\n{"".join(_card(*card) for card in cards(metrics))}</section>\n'


def _card(headline: str, *details: str) -> str:
    """Show the headline's first word large."""
    figure, _, label = headline.partition(" ")
    lines = "".join(f'<p class="detail">{_text(detail)}</p>' for detail in details)
    return f'<div class="card"><p class="figure">{_text(figure)}</p><p class="label">{_text(label)}</p>{lines}</div>\n'


def _bars(metrics: Mapping[str, Any]) -> str:
    legend = '<p class="legend"><i class="before"></i>before<i class="after"></i>after</p>'
    groups = "".join(f'<div class="pair"><p>{_text(label)}</p>{_pair(*both)}</div>\n' for label, *both in bars(metrics))
    return _section("Before and after", f'{legend}<div class="pairs">\n{groups}</div>')


def _pair(values: Sequence[Any], words: Sequence[str]) -> str:
    top = max((value for value in values if value), default=1)
    lines = ""
    for side, value, word in zip(("before", "after"), values, words, strict=True):
        bar = f'<div class="bar {side}" style="width:{100 * (value or 0) / top:.1f}%"></div>'
        lines += f'<div class="track">{bar}<span>{_text(word)}</span></div>'
    return lines


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in table.headings)
    lines = ("".join(f"<td>{_text(cell)}</td>" for cell in line) for line in table.lines)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    style = table.title.lower().replace(" ", "-")
    note = "Intervals are at 95 %." if table.title == "All figures" else ""
    whole = f'<table class="{style}"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    return _section(table.title, f'<div class="scroll">{whole}</div>', note)


def _notes(metrics: Mapping[str, Any]) -> str:
    lines = [("warning", f"fix: {metrics['fix']}")] if metrics.get("fix") else []
    lines += [("warning", line) for line in metrics.get("warnings") or ()]
    lines += [("", line) for line in metrics.get("notes") or ()]
    items = "".join(f'<li class="{style}">{_text(line)}</li>\n' for style, line in lines)
    return _section("Notes", f"<ul>\n{items}</ul>") if items else ""


def _layer_plots(metrics: Mapping[str, Any]) -> list[str]:
    layers = metrics.get("layers") or ()
    shares, errors = [dig(layer, "sparsity") for layer in layers], [dig(layer, "sqnr_db") for layer in layers]
    classes = ["kept" if dig(layer, "kept_dense") else "pruned" for layer in layers]
    found, top = [], round_top(errors)
    if any(share is not None for share in shares):
        drawing = bar_plot(shares, _titles(layers, map(percent, shares)), classes, 1.0)
        note = "Share of zero weights, first layer to last; grey layers are kept dense."
        found.append(_section("Sparsity per layer", _plot(drawing, "100 %", "50 %"), note))
    if any(error is not None for error in errors):
        drawing = line_plot(errors, _titles(layers, (number(error, ".1f", "dB") for error in errors)), top)
        note = "Signal to accumulated error at each layer's output, against the baseline; higher is closer."
        found.append(_section("Error along the depth", _plot(drawing, f"{top:.0f} dB", f"{top / 2:.0f}"), note))
    return found


def _titles(layers: Sequence[Any], values: Any) -> list[str]:
    return [f"{dig(layer, 'name') or DASH}: {value}" for layer, value in zip(layers, values, strict=True)]


def _plot(drawing: str, top: str, middle: str) -> str:
    axis = f'<div class="axis"><span>{top}</span><span>{middle}</span><span>0</span></div>'
    depth = '<div class="depth"><span>first layer</span><span>last layer</span></div>'
    return f'<div class="plot">{axis}{drawing}{depth}</div>'
