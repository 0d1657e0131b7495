"""The documentation is true: its code runs, its links lead somewhere, its quotes exist, its notebook prints what it says."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

import kernels.functional
import kernels.nn
from lenet.cli import EXTRAS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.glob("*.md"))
NOTEBOOK = DOCS / "course_demo.ipynb"

FENCE = re.compile(r"^(`{3,})(\S*)[^\n]*\n(.*?)^\1$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


def code_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The line and the text of each Python block of a page."""
    text = page.read_text()
    for fence in FENCE.finditer(text):
        if fence[2] == "python":
            yield text[: fence.start(3)].count("\n"), fence[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page writes goes to a temporary folder; no window is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")


def run(code: str, place: str, namespace: dict[str, Any], line: int = 0) -> None:
    exec(compile("\n" * line + code, place, "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if list(code_blocks(page))], ids=lambda page: page.stem)
def test_code_runs(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for line, code in code_blocks(page):
            run(code, str(page), namespace, line)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS["export"]:
            raise
        pytest.skip(f"{error.name} not installed")


def anchors(page: Path) -> set[str]:
    """Those that mkdocs gives to the page's headings."""
    text = FENCE.sub("", page.read_text())
    titles = [re.sub(r"[`*\\]|\]\([^)]*\)|\[", "", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: no file {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: no heading {link}"


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quotes_exist() -> None:
    quotes = hooks()
    found = [quote for page in PAGES for quote in quotes.QUOTE.findall(page.read_text())]
    assert found
    for name, path in found:
        ast.parse(quotes.source(path, name))


def test_a_quote_of_what_is_not_there_fails() -> None:
    with pytest.raises(KeyError, match="has no nonsense"):
        hooks().source("kernels/functional.py", "nonsense")


def test_every_name_is_mentioned() -> None:
    text = "".join(page.read_text() for page in DOCS.glob("*.md") if page.stem != "api")
    api = (DOCS / "api.md").read_text()
    for module in (kernels.functional, kernels.nn):
        for name in set(module.__all__) - {"functional"}:
            assert re.search(rf"`[^`]*\b{name}\b[^`]*`", text), f"no page mentions {name}"
            assert f"::: {module.__name__}.{name}\n" in api, f"{module.__name__}.{name} is not on the API page"


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    for page in (*DOCS.glob("*.md"), NOTEBOOK):
        assert f": {page.name}\n" in config, f"{page.name} is not in the nav of mkdocs.yml"


def test_notebook_prints_what_it_says() -> None:
    """Runs the cells in one namespace; what they print may differ in the last digits only."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 300_000
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            run("".join(cell["source"]), cell["id"], namespace)
        said = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
        assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", said)
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed.getvalue(), said)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=2e-4)
