"""MkDocs hook: quotes the source by name, so that no page holds a copy of it, and makes a page of each linked file.

A line `[source: Tile.fold](../kernels/numpy/conv2d.py)` in a page becomes that object's code; the same line is a working
link where the page is read in the repository.
"""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUOTE = re.compile(r"^\[source: ([\w.]+)\]\(\.\./([\w./-]+\.py)\)$", re.M)
LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")
FOR_TOOLS = re.compile(r"  # (type: ignore|noqa|fmt: )[^\n]*")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".md": "markdown"}


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


def fenced(text: str, language: str, title: str) -> str:
    return f'````{language} title="{title}"\n{text}\n````'


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each source file that a page links to."""
    from mkdocs.structure.files import File

    pages = [file.content_string for file in files.documentation_pages() if file.src_uri.endswith(".md")]
    for path in sorted({path for page in pages for path in LINK.findall(QUOTE.sub("", page))}):
        code = fenced((ROOT / path).read_text(), LANGUAGES.get(Path(path).suffix, "text"), path)
        content = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n# {path}\n\n{code}\n"
        files.append(File.generated(config, f"source/{path}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the code in the place of the quotes, and leads links to source files to their pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    markdown = QUOTE.sub(lambda m: fenced(source(m[2], m[1]), "python", f"{m[2]}: {m[1]}"), markdown)
    return LINK.sub(r"](source/\1.md)", markdown)
