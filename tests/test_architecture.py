"""Imports between the top-level folders point one way, and the runtime stays light."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "compare2score"  # its root is runtime/; every other folder is a subpackage of the folder's name

MAY_IMPORT: dict[str, set[str]] = {
    "runtime": set(),
    "comparator": {"runtime"},
    "training": {"runtime", "comparator", "anchors"},
    "anchors": {"runtime"},
    "export": {"runtime", "comparator", "anchors"},
    "pipelines": {"runtime", "training"},
    "benchmarks": {"runtime", "comparator", "training", "anchors", "export", "pipelines"},
    "cli": {"runtime", "comparator", "training", "anchors", "export", "pipelines", "benchmarks"},
}
NEVER_IN_RUNTIME = {"torch", "transformers"}
HEAVY = {"torch", "transformers", "onnx"}


def package_folders(root: Path) -> list[str]:
    return sorted(init.parent.name for init in root.glob("*/__init__.py"))


def imported_names(source: str, package: str) -> set[str]:
    """Absolute names that `source`, a module of `package`, imports: at its top, lazily, or for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            texts = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            names |= {importlib.util.resolve_name(str(text), package) for text in texts}
    return names


def forbidden_imports(root: Path) -> list[str]:
    """One line `file imports name` for every import under `root` that the table does not allow."""
    folders = package_folders(root)
    found: list[str] = []
    for folder in folders:
        allowed = {folder, *MAY_IMPORT.get(folder, set())}
        for file in sorted((root / folder).rglob("*.py")):
            inside = file.parent.relative_to(root / folder).parts
            package = ".".join([PACKAGE, *([] if folder == "runtime" else [folder]), *inside])
            for name in sorted(imported_names(file.read_text(encoding="utf-8"), package)):
                top, _, rest = name.partition(".")
                first = rest.partition(".")[0]
                target = first if first in folders else "runtime"
                if (top == PACKAGE and target not in allowed) or (
                    folder == "runtime" and top in NEVER_IN_RUNTIME
                ):
                    found.append(f"{file.relative_to(root).as_posix()} imports {name}")
    return found


def heavy_modules_after(statements: str, path: Path | None = None) -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded after `statements`; `path` is searched first."""
    program = f"import sys\n{statements}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, source in {**{f"{folder}/__init__.py": "" for folder in MAY_IMPORT}, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source, encoding="utf-8")


def test_every_import_follows_an_arrow() -> None:
    assert forbidden_imports(ROOT) == []


def test_every_package_folder_has_a_row_in_the_table() -> None:
    assert package_folders(ROOT) == sorted(MAY_IMPORT)


def test_no_runtime_module_is_shadowed_by_a_folder() -> None:
    modules = {entry.stem for entry in (ROOT / "runtime").iterdir()}
    assert modules & set(MAY_IMPORT) == set()


def test_importing_the_package_loads_no_heavy_module() -> None:
    every_public_name = "[getattr(compare2score, name) for name in getattr(compare2score, '__all__', [])]"
    assert heavy_modules_after(f"import compare2score\n{every_public_name}") == []


def test_a_heavy_module_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").touch()
    assert heavy_modules_after("import onnx", path=tmp_path) == ["onnx"]


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("runtime/scorer.py", "import compare2score.export", "compare2score.export"),
        ("runtime/scorer.py", "def score():\n    import torch.nn", "torch.nn"),
        ("runtime/backends/trt.py", "from transformers import AutoModel", "transformers.AutoModel"),
        ("runtime/backends/trt.py", "from ..comparator import prompt", "compare2score.comparator.prompt"),
        ("comparator/nano.py", "from compare2score import training", "compare2score.training"),
        ("training/loop.py", "from ..export.graphs import parity", "compare2score.export.graphs.parity"),
        ("anchors/select.py", "if TYPE_CHECKING:\n    from .. import comparator", "compare2score.comparator"),
        ("export/graphs.py", "import_module('compare2score.benchmarks')", "compare2score.benchmarks"),
        ("benchmarks/latency.py", "from compare2score.cli import main", "compare2score.cli.main"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, file: str, source: str, name: str) -> None:
    write_tree(tmp_path, {file: source})
    assert forbidden_imports(tmp_path) == [f"{file} imports {name}"]


def test_imports_along_the_arrows_and_of_others_pass(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "runtime/backends/ort.py": "import onnxruntime\nfrom compare2score.errors import BackendError",
            "runtime/scorer.py": "from . import errors\nfrom .backends import ort",
            "comparator/nano.py": "import torch\nfrom compare2score import Scorer",
            "training/loop.py": "from ..comparator import nano\nfrom .pairs import Pair",
            "benchmarks/latency.py": "from compare2score import anchors, export",
            "cli/bench.py": "def bench():\n    from compare2score.benchmarks import latency",
        },
    )
    assert forbidden_imports(tmp_path) == []
