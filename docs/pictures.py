"""Makes the pictures of docs/pictures: what a notebook and a terminal show, on light and on dark.

    python docs/pictures.py [NAME ...]

The HTML and the text are what the package shows of a real executor, whose calls run for it; only the times of the
progress are set, so that the pictures stay the same. It needs the command chromium-headless-shell, or chromium.
"""

import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme

from omniq_executor import PersistentExecutor
from omniq_executor.display.meter import Counts, Frame, Meter, Slow
from omniq_executor.display.terminal import render

FOLDER = Path(__file__).with_name("pictures")
THEMES = {"light": ("#ffffff", "#1f2328"), "dark": ("#111111", "#e6e6e6")}  # page and text, as of JupyterLab
_COLOURS = [(0, 0, 0), (190, 40, 40), (26, 127, 55), (154, 103, 0), (9, 90, 200), (130, 80, 223), (17, 119, 135)]
_FAINT = (150, 155, 160)
LIGHT = TerminalTheme((255, 255, 255), (31, 35, 40), [*_COLOURS, (90, 95, 100)], [_FAINT, *_COLOURS[1:], (0, 0, 0)])
WIDTH = 720


def parse(path: str, *, strict: bool = False) -> dict[str, object]:
    """Stand for work on a file."""
    time.sleep(0.05)
    if "03" in path:
        raise ValueError(f"{path}, line 1847: expected 12 columns, found 11")
    return {"path": path, "rows": 1200, "strict": strict}


def main() -> None:
    """Make those that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shown = {name: make() for name, make in _pages(Path(folder))}
        for name in sys.argv[1:] or shown:
            for theme, (page, text) in THEMES.items():
                _take(shown[name], Path(folder), FOLDER / f"{name}-{theme}.png", page, text)
    for name, frame in {"progress-terminal": _frame()}.items():
        if name in sys.argv[1:] or not sys.argv[1:]:
            for theme, of in {"light": LIGHT, "dark": DIMMED_MONOKAI}.items():
                _draw(frame, FOLDER / f"{name}-{theme}.svg", of)


def _pages(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Give the HTML of each picture, by its name."""
    store = folder / "runs" / "etl.db"
    paths = [f"data/2024-{month:02}.csv" for month in range(1, 13)]
    first = PersistentExecutor(2, store=store, queue="etl")
    list(first.map(parse, paths[:6], return_exceptions=True))
    first.kill_workers()  # so that the next one continues it
    with PersistentExecutor(2, store=store, queue="etl") as executor:
        results = executor.map(parse, paths, return_exceptions=True)
        list(results)
        failed = executor.submit(parse, "data/2023-03.csv", strict=True)
        failed.exception()
        done = executor.submit(parse, "data/2023-04.csv", strict=True)
        done.result()
        task = done.task()
        yield "progress-notebook", lambda: _frame().html()
        for name, it in {
            "executor": executor, "future": done, "future-failed": failed, "map": results, "store": executor.store,
            "task": task,
        }.items():  # fmt: skip
            html = it._repr_html_()  # type: ignore[attr-defined]
            for place in str(folder), str(Path(__file__).parent):
                html = html.replace(place, "/home/ada/project")
            html = html.replace(Path(__file__).name, "job.py")
            yield name, lambda html=html: html  # type: ignore[misc]


def _frame() -> Frame:
    """Return progress half-way."""
    meter = Meter(0.0)
    for second in range(25):
        slow = Slow("task-6h27z4jrsv001", "parse('data/2021-11.csv', strict=True)", 7.4)
        counts = Counts("parse", 1000, 220 + 17 * second, 220, second // 8, workers=8, slowest=slow)
        frame = meter.frame(counts, second * 1.0)
    return frame


def _take(html: str, folder: Path, picture: Path, page: str, text: str) -> None:
    """Have a browser draw it, and cut off what is empty."""
    source = folder / "page.html"
    source.write_text(
        f"<!doctype html><meta charset=utf-8><style>body {{ margin: 12px 16px; background: {page}; color: {text}; }}"
        f" #it {{ display: inline-block; min-width: {WIDTH - 32}px }}</style><div id=it>{html}</div>"
    )
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium") or sys.exit("no browser was found")
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2",
         f"--window-size={WIDTH},600", f"--screenshot={picture}", source.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image, ImageChops

    with Image.open(picture) as image:
        whole = image.convert("RGB")
    found = ImageChops.difference(whole, Image.new("RGB", whole.size, page)).getbbox() or (0, 0, *whole.size)
    whole.crop((0, 0, whole.width, found[3] + 24)).quantize(64).save(picture, optimize=True)


def _draw(frame: Frame, picture: Path, theme: TerminalTheme) -> None:
    """Have rich draw it."""
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True)
    console.print(render(frame, console))
    picture.write_text(console.export_svg(title="python job.py", theme=theme))


if __name__ == "__main__":
    main()
