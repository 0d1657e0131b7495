"""The files of a kernel repository on the Hugging Face Hub: the Triton backend and what it needs, from kernels/.

Files of package/ take the place of those of the same name in kernels/, all imports within the package become relative,
and what nothing imports is left out. The format: https://huggingface.co/docs/kernels/kernel-requirements
"""

import ast
import hashlib
import json
import re
from base64 import b64encode
from modulefinder import ModuleFinder
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
NAME = "lenet_kernels"
BACKENDS = ("cuda", "rocm")
GENERAL = {
    "name": NAME.replace("_", "-"),
    "version": 0,  # by the Hub's convention: not yet for production
    "license": "MIT",
}
Files = dict[str, str]


def write(out: Path) -> None:
    """Writes lenet-kernels as a repository of the Hugging Face Hub: sources for kernel-builder, and a build."""
    if out.exists():
        raise FileExistsError(f"{out} exists: expected the name of a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}") as folder:
        save(repository(), Path(folder, NAME)).rename(out)


def repository() -> Files:
    """All files: `torch-ext` is for kernel-builder, which makes an _ops.py of its own; `build` is what `kernels` loads."""
    package = needed(sources())
    files = {path.name: path.read_text(encoding="utf-8") for path in (HERE / "README.md", HERE.parent / "LICENSE")}
    files["build.toml"] = build_toml()
    files |= {f"torch-ext/{NAME}/{path}": text for path, text in package.items() if path != "_ops.py"}
    for backend in BACKENDS:
        files |= {f"build/torch-{backend}/{path}": text for path, text in variant(package, backend).items()}
    return files


def sources() -> Files:
    """Every Python file the package may need, by its path there."""
    ours = {
        path: with_relative_imports(text, path.count("/") + 1) for path, text in read(HERE.parent / "kernels").items()
    }
    return ours | read(HERE / "package")


def with_relative_imports(source: str, level: int) -> str:
    """The source with `from kernels...` by way of the package that is `level` dots away."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(r"\bfrom kernels\b\.?", f"from {'.' * level}", line, count=1)
    return "".join(lines)


def needed(files: Files) -> Files:
    """The files that importing the package imports."""
    with TemporaryDirectory() as folder:
        package = save(files, Path(folder, NAME))
        finder = ModuleFinder([folder])
        finder.import_hook(NAME)
        found = [Path(module.__file__) for module in finder.modules.values() if module.__file__]
        return {path: files[path] for path in sorted(file.relative_to(package).as_posix() for file in found)}


def variant(package: Files, backend: str) -> Files:
    """The package as built for a backend: with a namespace that no other build has, and metadata."""
    contents = hashlib.sha256(json.dumps(package).encode()).hexdigest()
    namespace = f"_{NAME}_{backend}_{contents[:12]}"
    package = package | {"_ops.py": package["_ops.py"].replace(f"ops.{NAME}", f"ops.{namespace}")}
    digests = {path: b64encode(hashlib.sha256(text.encode()).digest()).decode() for path, text in package.items()}
    metadata = GENERAL | {
        "id": namespace,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    return package | {"metadata.json": json.dumps(metadata, indent=2) + "\n"}


def build_toml() -> str:
    """What kernel-builder is told: nothing has to be compiled."""
    general = GENERAL | {"edition": 5, "backends": BACKENDS}
    return "\n".join(
        ["[general]", *(f"{key} = {json.dumps(value)}" for key, value in general.items()), "", "[torch-noarch]", ""]
    )


def read(folder: Path) -> Files:
    """The Python files of a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))
    }


def save(files: Files, folder: Path) -> Path:
    """Writes the files below the folder, which it returns."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())
    return folder
