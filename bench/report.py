"""The results as a Markdown table, as JSON and as a chart."""

import json
import os
import platform
import sqlite3
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.measure import START_METHOD, WORKERS
from bench.rounds import Result

GOOD, BAD, INK, FAINT = "#2a8c82", "#d9803f", "#1f2d3a", "#75838f"
NEEDED: dict[str, Any] = {"marker": "|", "markersize": 24, "markeredgewidth": 2.5, "color": INK}
AIMED: dict[str, Any] = {"marker": "D", "markersize": 7, "color": "white", "markeredgecolor": INK}
RIGHT: dict[str, Any] = {"horizontalalignment": "right", "verticalalignment": "center"}


@dataclass(frozen=True)
class Report:
    """All results, and what a reader must know of the run to judge them."""

    date: str
    python: str
    sqlite: str
    cores: int
    load_before: float
    load_after: float
    workers: int
    start_method: str
    durability: str
    quick: bool
    results: list[Result]


def report(results: list[Result], *, durability: str, quick: bool, load_before: float) -> Report:
    """The report of a run that has just ended. The loads tell whether others shared the machine."""
    return Report(
        date=datetime.now().astimezone().isoformat(" ", "minutes"),
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        cores=len(os.sched_getaffinity(0)),
        load_before=load_before,
        load_after=os.getloadavg()[0],
        workers=WORKERS,
        start_method=START_METHOD,
        durability=durability,
        quick=quick,
        results=results,
    )


def heading(of: Report) -> str:
    """The run in one line."""
    load = f"load {of.load_before:.1f} before, {of.load_after:.1f} after"
    return (
        f"{of.date} · Python {of.python} · SQLite {of.sqlite} · {of.cores} cores, {load} · "
        f'{of.workers} workers, {of.start_method} · durability="{of.durability}"'
        + (" · QUICK: small sizes, rough figures" if of.quick else "")
    )


def markdown(of: Report) -> str:
    """The heading, one table, and how to read it."""
    lines = [
        heading(of),
        "",
        "| what | ProcessPoolExecutor | PersistentExecutor | ratio | needs |",
        "|---|--:|--:|--:|---|",
    ]
    for result in of.results:
        ratio = "–" if result.ratio is None else times(result.ratio)
        cells = (result.what, figure(result.pool, result.unit), figure(result.persistent, result.unit), ratio)
        lines.append(f"| {' | '.join(cells)} | {needs(result)} |")
    lines += ["", "Figures are medians over the rounds; the ratio is the median of the ratios within each round."]
    return "\n".join(lines)


def figure(value: float, unit: str) -> str:
    """Three digits that count, and the unit."""
    return f"{digits(value)}{'/s' if unit == 'calls/s' else ' ' + unit}"


def times(ratio: float) -> str:
    """A ratio as people say it."""
    return f"{digits(ratio)} ×"


def digits(value: float) -> str:
    """Three digits that count, but no more than three behind the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def needs(result: Result) -> str:
    """The target, and whether it is met."""
    if result.need is None:
        return ""
    unit = f" {result.unit}" if result.absolute else " ×"
    aim = "" if result.aim is None else f", aim {result.aim:g}{unit}"
    sign, mark = "≥" if result.more_is_better else "≤", "✓" if result.met else "✗"
    return f"{mark} {sign} {result.need:g}{unit}{aim}"


def write_json(of: Report, path: Path) -> None:
    """The same as the table, with the figures of every round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(of), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def slower(results: list[Result], path: Path) -> list[str]:
    """Say of each row that is worse by a fifth than in a file that `write_json()` wrote, how it was and is.

    Ratios to ProcessPoolExecutor are compared, since the machine may be another one or busier; figures that have none
    are not. Rows are told by their measurement and figure, whatever their size.
    """
    kept = {
        (row["measurement"], row["figure"]): row["ratio"]
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]
    }
    lines = []
    for result in results:
        before = kept.get((result.measurement, result.figure))
        if before and result.ratio and turned(result, result.ratio) < turned(result, before) * 0.8:
            lines.append(f"slower: {result.what}: {times(result.ratio)} now, {times(before)} before")
    return lines


def draw(of: Report, path: Path) -> None:
    """The ratios as bars, turned so that longer is better. Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    shown = [(result, turned(result, result.ratio)) for result in of.results if result.ratio]
    targets = [turned(result, target) for result, _ in shown for target in (result.need, result.aim) if target]
    reach = [1.0, *targets, *(length for _, length in shown)]
    span = max(reach) / min(reach)
    low, high = min(reach) / span**0.06, max(reach) * span**0.32  # the words after the longest bar need room
    height = 1.95 + 0.62 * len(shown)
    chart = Figure(figsize=(11, height), dpi=150, facecolor="white")
    axes = chart.add_axes((0.45, 0.8 / height, 0.52, 1 - 1.9 / height), facecolor="white")
    axes.set(xscale="log", xlim=(low, high), ylim=(len(shown) - 0.4, -0.6), yticks=[])

    for place, (result, length) in enumerate(shown):
        draw_bar(axes, place, result, length)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks], color=FAINT)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#e6eaee", zorder=0)
    axes.axvline(1, color=INK, linewidth=1.2, zorder=3)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("times better than ProcessPoolExecutor, log scale (left of 1: worse)", color=FAINT)
    for label, drawn in (("needed", NEEDED), ("aimed at", AIMED)):
        axes.plot([], [], label=label, linestyle="none", **drawn)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, labelcolor=INK, handletextpad=0.2)
    title = "PersistentExecutor beside ProcessPoolExecutor"
    chart.text(0.02, 1 - 0.4 / height, title, size=16, weight="bold", color=INK)
    chart.text(0.02, 1 - 0.66 / height, heading(of), size=8, color=FAINT)
    sides, above = "ProcessPoolExecutor  →  PersistentExecutor", (-12, 14)
    axes.annotate(sides, (0, 1), above, "axes fraction", "offset points", **RIGHT, color=FAINT, size=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)


def draw_bar(axes: Any, place: int, result: Result, length: float) -> None:
    """A bar from 1 to its length, with its targets, what it is of and how long it is."""
    axes.barh(place, length - 1, left=1, height=0.5, color=GOOD if length >= 1 else BAD, zorder=2)
    end = max(1, length)
    for target, drawn in ((result.need, NEEDED), (result.aim, AIMED)):
        if target:
            axes.plot(turned(result, target), place, zorder=4, **drawn)
            end = max(end, turned(result, target))
    past_it = {"xytext": (9, 0), "textcoords": "offset points", "verticalalignment": "center"}
    axes.annotate(in_words(result), (end, place), **past_it, color=INK, weight="bold")
    figures = f"{figure(result.pool, result.unit)}  →  {figure(result.persistent, result.unit)}"
    beside = axes.get_yaxis_transform()
    for text, lift, color, size in ((result.what.replace("`", ""), 7, INK, 10), (figures, -8, FAINT, 9)):
        axes.annotate(text, (0, place), (-12, lift), beside, "offset points", **RIGHT, color=color, size=size)


def turned(result: Result, ratio: float) -> float:
    """A ratio to ProcessPoolExecutor as a factor that is above 1 where PersistentExecutor is better."""
    return ratio if result.more_is_better else 1 / ratio


def in_words(result: Result) -> str:
    """The length of a bar as one would say it."""
    factor = turned(result, result.ratio or 1)
    better, worse = ("less", "more") if result.unit in ("s", "MiB") else ("faster", "slower")
    said = digits(max(factor, 1 / factor))
    return "the same" if said == "1.00" else f"{said} × {better if factor > 1 else worse}"
