"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "omniq_executor", "tests", "bench", "examples", "docs"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """By the end of their path: pages name a module as short as it is clear."""
    files = {f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} | {
        "/script.py",
        "/job.py",
        "/helpers.py",  # of the reader
    }
    named = set(re.findall(r"[\w/]+\.py\b", page.read_text()))
    assert sorted(name for name in named if not any(file.endswith(f"/{name}") for file in files)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page_are_there_on_light_and_on_dark(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert [name for name in named if not (page.parent / name).exists()] == []
    assert sorted(name.replace("-dark", "") for name in named if "-dark" in name) == sorted(
        name.replace("-light", "") for name in named if "-light" in name
    )


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    shown = (ROOT / "docs" / "progress.md").read_text()
    assert pictures
    assert [it.name for it in pictures if it.stat().st_size > 100_000 or it.name not in shown] == []
