"""`python -m bench` as a user runs it: the shape of what it says, not the speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the bench reads /proc"),
]


def bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "--quick", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
    )


def table(output: str) -> list[list[str]]:
    """The rows of the Markdown table below its head, cell by cell."""
    rows = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0]] == [
        "what",
        "ProcessPoolExecutor",
        "PersistentExecutor",
        "ratio",
        "needs",
    ]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def number(cell: str) -> float:
    return float(cell.split()[0].replace(",", "").removesuffix("/s"))


def test_table_and_json_agree(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    ran = bench("--only", "map", "--only", "idle", "--json", tmp_path / "new/out.json", "--store-dir", stores)
    assert ran.returncode == 0, ran.stderr

    report = json.loads((tmp_path / "new/out.json").read_text(encoding="utf-8"))
    heading = ran.stdout.splitlines()[0]
    assert report["quick"]
    assert "QUICK" in heading
    for said in (report["date"], report["python"], report["sqlite"], f"{report['cores']} cores", report["durability"]):
        assert said in heading

    rows = table(ran.stdout)
    assert [(r["measurement"], r["figure"]) for r in report["results"]] == [
        ("map", "rate"),
        ("map", "cpu"),
        ("idle", "share"),
    ]
    assert [row[0] for row in rows] == [result["what"] for result in report["results"]]
    for (_, pool, persistent, ratio, needs), result in zip(rows, report["results"], strict=True):
        assert number(pool) == pytest.approx(result["pool"], rel=0.01, abs=0.001)
        assert number(persistent) == pytest.approx(result["persistent"], rel=0.01, abs=0.001)
        assert (ratio == "–") if result["ratio"] is None else number(ratio) == pytest.approx(result["ratio"], rel=0.01)
        assert needs[:1] == {None: "", True: "✓", False: "✗"}[result["met"]]
        assert all(len(pair) == 2 for pair in result["rounds"])
    assert list(stores.iterdir()) == []


def test_target_is_judged_by_the_ratio_in_its_direction(tmp_path: Path) -> None:
    bench("--only", "map", "--only", "import", "--json", tmp_path / "out.json")
    for result in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]:
        if result["need"] is not None:
            reached = (
                result["ratio"] >= result["need"] if result["more_is_better"] else result["ratio"] <= result["need"]
            )
            assert result["met"] == reached


def test_chart_is_left_out_in_one_line_where_matplotlib_is_missing(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('as if it were not there')")
    ran = bench(
        "--only", "import", "--json", tmp_path / "out.json", "--png", tmp_path / "out.png", PYTHONPATH=str(tmp_path)
    )
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stderr.splitlines() if "matplotlib" in line and "[bench]" in line]
    assert not (tmp_path / "out.png").exists()
    assert table(ran.stdout)


def test_chart_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = bench("--only", "import", "--json", tmp_path / "out.json", "--png", tmp_path / "out.png")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_failed_measurement_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sitecustomize.py").write_text(
        "import os, sys\nif {'bench.measure', 'first'} <= set(sys.orig_argv): os._exit(3)\n"
    )
    ran = bench(
        "--only", "first", "--only", "import", "--json", tmp_path / "o.json", PYTHONPATH=str(tmp_path / "broken")
    )
    assert ran.returncode == 1
    assert "failed: first, pool: exit status 3" in ran.stderr
    assert {result["measurement"] for result in json.loads((tmp_path / "o.json").read_text())["results"]} == {"import"}


def test_what_is_slower_by_a_fifth_than_in_a_kept_file_is_named(tmp_path: Path) -> None:
    out, kept = tmp_path / "out.json", tmp_path / "kept.json"
    assert bench("--only", "import", "--json", out).returncode == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    for result in report["results"]:  # shorter is better: as if it had been five times as good, or as bad
        result["ratio"] *= 0.2 if result["figure"] == "package" else 5
    kept.write_text(json.dumps(report), encoding="utf-8")
    ran = bench("--only", "import", "--json", out, "--against", kept)
    assert ran.returncode == 1
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("slower:")]
    assert "import omniq_executor" in line


def test_other_libraries_are_measured_beside_ours_and_those_that_are_missing_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.peers", "--quick", "--rounds", "1", "--row", "own", "--row", "10ms"]
    only = ["--only", "omniq_executor, SQLite", "--json", str(tmp_path / "out.json")]
    ran = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    rows = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| ProcessPoolExecutor", "| omniq_executor, SQLite"]
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert figures["ProcessPoolExecutor"]["own"]["ratio"] == 1
    assert figures["omniq_executor, SQLite"]["10ms"]["figure"] >= 1


def test_the_store_of_many_days_keeps_its_size(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.days",
        "--days",
        "4",
        "--calls",
        "3000",
        "--json",
        str(tmp_path / "out.json"),
    ]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    days = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["kept"] for row in days] == [3000] * 4
    assert days[3]["size"] <= days[1]["size"] * 1.1
