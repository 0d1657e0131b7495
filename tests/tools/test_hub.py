"""The repository for the Hugging Face Hub: its form, its layers in a process without our package, and in Hugging Face's."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from inspect import signature
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hub_model import ARGUMENTS, imported
from judge import CONV2D, LINEAR, MAX_POOL2D, MSE_LOSS, RELU, SOFTMAX, Call, judge

from hub import layout

ROOT = Path(__file__).parents[2]
OPERATIONS = {
    "Conv2d": CONV2D,
    "MaxPool2d": MAX_POOL2D,
    "Linear": LINEAR,
    "ReLU": RELU,
    "Softmax": SOFTMAX,
    "MSELoss": MSE_LOSS,
}


@pytest.fixture(scope="module")
def files() -> layout.Files:
    return layout.repository()


@pytest.fixture(scope="module")
def repository(files: layout.Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.save(files, tmp_path_factory.mktemp("hub"))


def test_imports_are_relative_or_of_torch(repository: Path) -> None:
    for file in (repository / "build/torch-cuda").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {"torch", "triton", *sys.stdlib_module_names}, file


def below(files: layout.Files, folder: str) -> layout.Files:
    return {path.removeprefix(folder): text for path, text in files.items() if path.startswith(folder)}


def test_only_what_is_needed_is_there(files: layout.Files) -> None:
    package, built = below(files, "torch-ext/lenet_kernels/"), below(files, "build/torch-cuda/")
    assert package.keys() >= {
        "layers.py",
        "functional.py",
        "ops/conv2d.py",
        "triton/conv2d.py",
        "integration/vmap_rules.py",
    }
    assert not any(path.startswith(("numpy", "cupy", "nn", "optim", "check")) for path in package)
    assert package.items() < built.items()
    assert set(built) - set(package) == {"_ops.py", "metadata.json"}  # which kernel-builder makes


@pytest.fixture(scope="module")
def packages(repository: Path) -> list[ModuleType]:
    """The builds, imported beside each other and beside ours."""
    return [imported(f"package_{folder.name}", folder) for folder in sorted((repository / "build").iterdir())]


def test_layers_have_no_state(packages: list[ModuleType]) -> None:
    for name in ARGUMENTS:
        layer, theirs = getattr(packages[0].layers, name), getattr(torch.nn, name)
        assert layer.__init__ is torch.nn.Module.__init__
        assert set(dir(layer)) - set(dir(torch.nn.Module)) == {"has_backward", "can_torch_compile"}
        assert list(signature(layer.forward).parameters) == list(signature(theirs.forward).parameters)


def test_each_build_has_operators_of_its_own(repository: Path, packages: list[ModuleType]) -> None:
    names = [id_in((repository / f"build/torch-{backend}/metadata.json").read_text()) for backend in layout.BACKENDS]
    operators = [getattr(torch.ops, name).conv2d_forward.default for name in ("lenet_kernels", *names)]
    assert len(set(operators)) == 3 == 1 + len(packages)


def test_other_contents_have_another_namespace() -> None:
    builds = [layout.variant({"_ops.py": "", "layers.py": text}, "cuda") for text in ("1", "2")]
    assert len({id_in(build["metadata.json"]) for build in builds}) == 2


def id_in(metadata: str) -> str:
    return json.loads(metadata)["id"]


def test_without_a_gpu_the_error_says_so(packages: list[ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="lenet_kernels cannot run: .*GPU|takes tensors on"):
        packages[0].functional.relu(torch.ones(3, device="cpu"))


def judge_model(way: str, repository: Path, tmp_path: Path) -> None:
    """Runs hub_model.py away from ours, and judges every layer's results and gradients."""
    script, results = Path(__file__).with_name("hub_model.py"), tmp_path / "results"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), way, str(repository / "build/torch-cuda"), str(results)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    records = torch.load(results)
    assert {name for name, *_ in records} == set(OPERATIONS)
    for name, args, kwargs, dy, outputs in records:
        judge(OPERATIONS[name], Call(tuple(args), kwargs), dy, outputs)


def test_a_model_in_a_process_without_ours(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    judge_model("imported", repository, tmp_path)


def test_a_model_kernelized_by_hugging_face(repository: Path, tmp_path: Path) -> None:
    if not list(distributions(name="kernels")):
        pytest.skip("Hugging Face's kernels not installed: nox -s hub")
    judge_model("kernelized", repository, tmp_path)


def test_the_command(files: layout.Files, tmp_path: Path) -> None:
    command, out = [sys.executable, "-m", "hub", str(tmp_path / "new/out")], tmp_path / "new/out"
    subprocess.run(command, cwd=ROOT, check=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert {path.name for path in out.iterdir()} == {"build.toml", "README.md", "LICENSE", "torch-ext", "build"}
    assert all((out / path).read_bytes() == text.encode() for path, text in files.items())
    (out / "LICENSE").write_text("changed")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists" in again.stderr and (out / "LICENSE").read_text() == "changed"


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "repository", lambda: {"a/file": "text"})
    monkeypatch.setattr(Path, "rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layout.write(tmp_path / "out")
    assert not list(tmp_path.iterdir())
