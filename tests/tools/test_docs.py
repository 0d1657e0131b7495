"""The documentation is true: its code runs, its links lead somewhere, its quotes exist, its notebook prints what it says."""

import ast
import contextlib
import html
import importlib.util
import io
import json
import re
import warnings
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import torch

import kernels.functional
import kernels.nn
import kernels.optim
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
    of_cuda = [quote for page in PAGES for quote in quotes.CUDA_QUOTE.findall(page.read_text())]
    assert of_cuda
    for name, path in of_cuda:
        assert name in quotes.cuda_source(path, name)


def test_a_quote_of_what_is_not_there_fails() -> None:
    with pytest.raises(KeyError, match="has no nonsense"):
        hooks().source("kernels/functional.py", "nonsense")


def formulas(page: Path) -> list[tuple[str, str]]:
    """The formulas of a page, each with how it stands in the text."""
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text()))
    found = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, re.S)
    return [(block or inline, "block" if block else "inline") for block, inline in found]


@pytest.mark.parametrize("page", [page for page in PAGES if formulas(page)], ids=lambda page: page.stem)
def test_formulas_become_mathml(page: Path) -> None:
    pytest.importorskip("latex2mathml")
    for formula, display in formulas(page):
        marks, tag = (r"\[\]", "div") if display == "block" else (r"\(\)", "span")
        marked = f'<{tag} class="arithmatex">{marks[:2]}{html.escape(formula)}{marks[2:]}</{tag}>'
        shown = xml.etree.ElementTree.fromstring(
            hooks().on_page_content(marked, None, None, None).replace("&", "&amp;")
        )
        assert shown.tag.endswith("math") and shown.get("display") == display and "\\" not in "".join(shown.itertext())


def test_a_formula_that_is_none_fails() -> None:
    pytest.importorskip("latex2mathml")
    with pytest.raises(ValueError, match="no MathML"):
        hooks().mathml(r"\nonsense x", "inline")


def test_the_site_asks_for_nothing_elsewhere() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    assert "://" not in config and "font: false" in config
    assert not re.search(r"url\(|@import", (DOCS / "site.css").read_text())


def differences() -> str:
    """The table of what differs from torch."""
    return (
        (DOCS / "drop-in.md").read_text().partition("## What differs")[2].partition("And what torch does not have")[0]
    )


def test_memory_order_differs() -> None:
    """`view` across the first dimension, and random numbers of a seed; with the ways out that the table names."""
    assert "`y.view(-1)`" in differences() and "`randn_like`" in differences()
    x, weight = torch.randn(4, 1, 6, 6), torch.randn(2, 1, 3, 3)
    ours, theirs = kernels.functional.conv2d(x, weight), torch.nn.functional.conv2d(x, weight)
    theirs.view(-1)
    for y in (ours, theirs.contiguous(memory_format=torch.channels_last)):
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            y.view(-1)
    assert ours.view(len(ours), -1).shape == ours.flatten(1).shape and ours.reshape(-1).shape == (128,)
    for draw in (torch.randn_like, torch.rand_like, lambda y: torch.nn.functional.dropout(torch.ones_like(y))):
        drawn = []
        for y in (theirs, ours, theirs.contiguous(memory_format=torch.channels_last)):
            torch.manual_seed(0)
            drawn.append(draw(y))
        assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    torch.manual_seed(0)
    first = torch.randn(ours.shape)
    torch.manual_seed(0)
    assert torch.equal(first, torch.randn_like(theirs))


def test_every_other_optimiser_is_torchs() -> None:
    assert "| `kernels.optim` | | `SGD` is ours, every other name torch's own |" in differences()
    assert kernels.optim.Adam is torch.optim.Adam and kernels.optim.SGD is not torch.optim.SGD


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
