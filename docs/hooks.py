"""MkDocs hook: quotes source and results, so that no page holds a copy of them, makes a page of each linked file, and
turns formulas into MathML, which a browser shows without a script.

A line `[source: Folding.fold](../kernels/numpy/folding.py)` in a page becomes that object's code, also that of a function or
struct in a .cu or .cuh file; `[table: caption](../benchmarks/results/FILE.csv)` becomes a table. The same lines are working
links where the page is read in the repository.
"""

import ast
import csv
import html
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUOTE = re.compile(r"^\[source: ([\w.]+)\]\(\.\./([\w./-]+\.py)\)$", re.M)
CUDA_QUOTE = re.compile(r"^\[source: (\w+)\]\(\.\./([\w./-]+\.cuh?)\)$", re.M)
TABLE = re.compile(r"^\[table: [^\]]+\]\(\.\./([\w./-]+\.csv)\)$", re.M)
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S
)  # as pymdownx.arithmatex marks them
LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")
FOR_TOOLS = re.compile(r"  # (type: ignore|noqa|fmt: )[^\n]*")
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".toml": "toml", ".yml": "yaml", ".md": "markdown"}


def source(path: str, name: str) -> str:
    """The code of the function, class, method or assignment `name` of a file, without comments for linters.

    KeyError: the file has no such name.
    """
    text = (ROOT / path).read_text()
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in node.body if part in _names(child)), None)
        if node is None:
            raise KeyError(f"{path} has no {name}")
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return FOR_TOOLS.sub("", "\n".join(line[indent:] for line in lines))


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def cuda_source(path: str, name: str) -> str:
    """The code of the function or struct `name` of a CUDA C++ file, with the comment right above it.

    Definitions begin in the first column. KeyError: the file has no such name.
    """
    lines = (ROOT / path).read_text().splitlines()
    definition = re.compile(rf"(?=\w).*\bstruct {name}\b.*{{|(?=\w)(?:.*\W)?{name}\(")
    first = next((i for i, line in enumerate(lines) if definition.match(line)), None)
    if first is None:
        raise KeyError(f"{path} has no {name}")
    end = first + 1
    while not (code := "".join(lines[first:end])).count("{") == code.count("}") > 0:
        end += 1
    while first and lines[first - 1].startswith(("//", "template", "extern")):
        first -= 1
    return "\n".join(lines[first:end])


def table(path: str) -> str:
    """A CSV file as a Markdown table, columns of numbers to the right."""
    head, *rows = csv.reader((ROOT / path).read_text().splitlines())
    numbers = [all(re.fullmatch(r"[-+.\de]*", value) for value in column) for column in zip(*rows, strict=True)]
    titles = [title.replace("_", " ") for title in head]
    lines = [titles, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str, title: str) -> str:
    return f'````{language} title="{title}"\n{text}\n````'


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each source file that a page links to."""
    from mkdocs.structure.files import File

    pages = [file.content_string for file in files.documentation_pages() if file.src_uri.endswith(".md")]
    for path in sorted({path for page in pages for path in LINK.findall(replaced(page))}):
        code = fenced((ROOT / path).read_text(), LANGUAGES.get(Path(path).suffix, "text"), path)
        content = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n# {path}\n\n{code}\n"
        files.append(File.generated(config, f"source/{path}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the code in the place of the quotes, and leads links to source files to their pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    return LINK.sub(r"](source/\1.md)", replaced(markdown))


def replaced(markdown: str) -> str:
    """The page with code and tables in the place of the lines that name them."""
    markdown = QUOTE.sub(lambda m: fenced(source(m[2], m[1]), "python", f"{m[2]}: {m[1]}"), markdown)
    markdown = CUDA_QUOTE.sub(lambda m: fenced(cuda_source(m[2], m[1]), "cuda", f"{m[2]}: {m[1]}"), markdown)
    return TABLE.sub(lambda m: table(m[1]), markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    return FORMULA.sub(lambda m: mathml(html.unescape(m[2]), "inline" if m[1] == "span" else "block"), content)


def mathml(formula: str, display: str) -> str:
    """A formula of LaTeX in MathML. ValueError: it has a command that the converter does not know."""
    from latex2mathml.converter import convert

    result = convert(formula.strip(), display=display)
    if "\\" in result:
        raise ValueError(f"no MathML for {formula}")
    return re.sub(r"<mi>(log|exp)</mi>", r'<mi>\1</mi><mspace width="0.17em" />', result)
