"""Write report.html from metrics.json: one file, no script, nothing fetched."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from sparsify.plots import bar_plot, line_plot, round_top
from sparsify.report_figures import (
    DASH,
    LAYER_HEADINGS,
    STAGE_HEADINGS,
    budget_text,
    change,
    deciding_metric,
    deciding_runtime,
    dig,
    layer_cells,
    milliseconds,
    number,
    of,
    particulars,
    percent,
    ratio,
    rows,
    size,
    span,
    stage_cells,
    summary,
    times,
    verdict,
)


def render_html(metrics: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page; everything that comes from files is escaped."""
    style = files("sparsify").joinpath("report.css").read_text(encoding="utf-8")
    title = f"{verdict(metrics).title}: {metrics.get('use_case') or DASH}"
    sections = (_cards, _bars, _comparison, _messages, _layer_plots, _layer_table, _stages, _particulars)
    body = _header(metrics) + "".join(section(metrics) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(DASH if value is None else value))


def _section(title: str, content: str, note: str = "") -> str:
    subtitle = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section>\n<h2>{_text(title)}</h2>{subtitle}\n{content}\n</section>\n"


def _header(metrics: Mapping[str, Any]) -> str:
    judged = verdict(metrics)
    words = [metrics.get("use_case"), metrics.get("kind"), f"level {number(metrics.get('optim_level'), '.3g')}"]
    over = " · ".join(_text(word) for word in (*words, f"seed {number(metrics.get('seed'), 'd')}"))
    return (
        f'<header class="{judged.tone}">\n<p class="over">{over}</p>\n<h1>{_text(judged.title)}</h1>\n'
        f'<p class="lead">{_text(summary(metrics))}</p>\n<p class="note">{_text(judged.text)}</p>\n</header>\n'
    )


def _cards(metrics: Mapping[str, Any]) -> str:
    runtime, name = deciding_runtime(metrics), deciding_metric(metrics)
    latency = [dig(metrics, side, "latency", runtime or "") for side in ("baseline", "optimized")]
    speed = span(metrics.get("speedup_interval"))
    moved, bounds = change(metrics, name or "")
    cards = [
        _card(
            *_factor(ratio(metrics, "bytes"), "smaller", "larger"),
            f"{size(dig(metrics, 'baseline', 'bytes'))} → {size(dig(metrics, 'optimized', 'bytes'))}",
            f"{percent(dig(metrics, 'optimized', 'sparsity'))} sparse",
        ),
        _card(
            *_factor(dig(metrics, "speedup", runtime or ""), "faster", "slower"),
            f"{milliseconds(dig(latency[0], 'p50_ms'))} → {milliseconds(dig(latency[1], 'p50_ms'))}",
            f"95 % {speed}×"
            if speed
            else f"{of(dig(latency[1], 'int8_executed'), dig(latency[1], 'of'))} nodes in INT8",
        ),
        _card(
            number(moved, "+.2f"),
            f"points of {name or 'the metric'}",
            " → ".join(number(dig(metrics, side, "metrics", name or "")) for side in ("baseline", "optimized")),
            f"95 % {span(bounds)}" if bounds else budget_text(metrics),
        ),
    ]
    if name != "agreement":
        top1, cosine = (dig(metrics, "agreement", key) for key in ("top1", "cosine"))
        figure = number(cosine, ".4f") if top1 is None else number(top1, ".1f", "%")
        cards.append(
            _card(figure, "agreement" if top1 is not None else "cosine", "with the baseline's own outputs", "")
        )
    return f'<section class="cards">\n{"".join(cards)}</section>\n'


def _factor(value: Any, word: str, opposite: str) -> tuple[str, str]:
    """Split `2.1× faster` into its figure and its word."""
    figure, _, named = times(value, word, opposite).partition(" ")
    return figure, named or word


def _card(figure: str, label: str, detail: str, small: str) -> str:
    return (
        f'<div class="card"><p class="figure">{_text(figure)}</p><p class="label">{_text(label)}</p>'
        f'<p class="detail">{_text(detail)}</p><p class="detail">{_text(small)}</p></div>\n'
    )


def _bars(metrics: Mapping[str, Any]) -> str:
    pairs: list[tuple[str, list[Any], Callable[[Any], str]]] = [
        (label, [dig(metrics, side, key) for side in ("baseline", "optimized")], size)
        for label, key in (("file size", "bytes"), ("compressed (gzip -9)", "compressed_bytes"))
    ]
    for runtime in dig(metrics, "optimized", "latency") or {}:
        for label, key in (("median latency", "p50_ms"), ("95th percentile", "p95_ms")):
            both = [dig(metrics, side, "latency", runtime, key) for side in ("baseline", "optimized")]
            pairs.append((f"{label}, {runtime}", both, milliseconds))
    groups = []
    for label, both, write in pairs:
        top = max((value for value in both if value), default=1)
        bars = "".join(
            f'<div class="track"><div class="bar {side}" style="width:{100 * (value or 0) / top:.1f}%"></div>'
            f"<span>{_text(write(value))}</span></div>"
            for side, value in zip(("before", "after"), both, strict=True)
        )
        groups.append(f'<div class="pair"><p>{_text(label)}</p>{bars}</div>\n')
    legend = '<p class="legend"><i class="before"></i>before<i class="after"></i>after</p>'
    return _section("Before and after", f'{legend}<div class="pairs">\n{"".join(groups)}</div>')


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]], style: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in line) + "</tr>\n" for line in lines)
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _comparison(metrics: Mapping[str, Any]) -> str:
    lines = [(row.label, row.before, row.after, row.change) for row in rows(metrics)]
    return _section(
        "All figures", _table(("", "before", "after", "change"), lines, "figures"), "Intervals are at 95 %."
    )


def _messages(metrics: Mapping[str, Any]) -> str:
    fix = f'<p class="fix"><b>Fix</b> {_text(metrics["fix"])}</p>' if metrics.get("fix") else ""
    warnings = "".join(f'<li class="warning">{_text(line)}</li>' for line in metrics.get("warnings") or ())
    notes = "".join(f"<li>{_text(line)}</li>" for line in metrics.get("notes") or ())
    return _section("Notes", f"{fix}<ul>{warnings}{notes}</ul>") if fix or warnings or notes else ""


def _layer_plots(metrics: Mapping[str, Any]) -> str:
    layers = metrics.get("layers") or ()
    if not layers:
        return ""
    shares = [dig(layer, "sparsity") for layer in layers]
    errors = [dig(layer, "sqnr_db") for layer in layers]
    named = [str(dig(layer, "name") or DASH) for layer in layers]
    classes = ["kept" if dig(layer, "kept_dense") else "pruned" for layer in layers]
    titles = [f"{name}: {percent(share)}" for name, share in zip(named, shares, strict=True)]
    plot = _plot(bar_plot(shares, titles, classes, 1.0), ("100 %", "50 %", "0"))
    found = _section(
        "Sparsity per layer", plot, "Share of zero weights, first layer to last; grey layers are kept dense."
    )
    if any(value is not None for value in errors):
        top = round_top(errors)
        titles = [f"{name}: {number(value, '.1f', 'dB')}" for name, value in zip(named, errors, strict=True)]
        plot = _plot(line_plot(errors, titles, top), (f"{top:.0f} dB", f"{top / 2:.0f}", "0"))
        note = "Signal to accumulated error at each layer's output, against the baseline; higher is closer."
        found += _section("Error along the depth", plot, note)
    return found


def _plot(drawing: str, labels: Sequence[str]) -> str:
    axis = "".join(f"<span>{_text(label)}</span>" for label in labels)
    return (
        f'<div class="plot"><div class="axis">{axis}</div>{drawing}'
        '<div class="depth"><span>first layer</span><span>last layer</span></div></div>'
    )


def _layer_table(metrics: Mapping[str, Any]) -> str:
    layers = metrics.get("layers") or ()
    if not layers:
        return ""
    cells = [layer_cells(layer) for layer in layers]
    # a column that says nothing for any layer is left out
    kept = [column for column in range(len(LAYER_HEADINGS)) if any(line[column] not in ("", DASH) for line in cells)]
    headings = [LAYER_HEADINGS[column] for column in kept]
    return _section("Layers", _table(headings, ([line[column] for column in kept] for line in cells), "layers"))


def _stages(metrics: Mapping[str, Any]) -> str:
    stages = metrics.get("stages") or ()
    return _section("Stages", _table(STAGE_HEADINGS, map(stage_cells, stages), "stages")) if stages else ""


def _particulars(metrics: Mapping[str, Any]) -> str:
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n" for name, value in particulars(metrics))
    return _section("Measured with", f"<dl>\n{lines}</dl>") if lines else ""
