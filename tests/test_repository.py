"""The repository as a whole: clean notebooks, current copies, no path of a machine, imports in order."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

from recsys_study import parameters, pipeline, report

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [ROOT / "notebooks" / f"{stage}.ipynb" for stage in pipeline.CHAIN]
SMOKE_CHAIN = pipeline.chain(parameters.load(ROOT / "params" / "smoke.yaml"))

NOT_YET = {"diversity"}

# Imports go downwards only: a package of the library imports from its own row and the rows above, and the study from
# everything. Evidence stands above the models because it knows them only by the interface in `base`.
ROWS = ["base", "data", "personal", "evaluation", "models", "ranking"]


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def lines_of(cell: dict[str, Any]) -> list[str]:
    return [line for line in source(cell).splitlines() if line.strip() and not line.strip().startswith("#")]


def tracked() -> list[Path]:
    """Text files under version control, or every source file where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".venv" not in p.parts]
    else:
        names = listed.stdout.split("\0")
    kept = {".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".txt", ".ipynb", ".json", ".csv", ".cfg", "", ".sh"}
    return [ROOT / name for name in names if name and (ROOT / name).suffix in kept and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_carries_no_outputs(self, path: Path) -> None:
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))

    def test_is_an_essay(self, path: Path) -> None:
        """A reader follows calls, tables and figures; what needs more code than this belongs into recsys_study."""
        if path.stem in NOT_YET:
            return
        lines = [len(lines_of(cell)) for cell in cells(path)]
        usual = [cell for cell in cells(path) if "parameters" not in cell["metadata"].get("tags", [])]
        assert len(lines) <= 20
        assert sum(lines) <= 160
        assert max(len(lines_of(cell)) for cell in usual) <= 15
        assert not [cell for cell in usual if re.search(r"^\s*def ", source(cell), re.M)]

    def test_says_first_what_it_asks_reads_and_writes(self, path: Path) -> None:
        first = source(cells(path, "markdown")[0])
        assert first.startswith("# ")
        assert "?" in first
        assert "**Reads**" in first
        assert "**Writes**" in first

    def test_its_reference_copy_holds_the_same_code(self, path: Path) -> None:
        if path.stem not in SMOKE_CHAIN:
            return
        copy = ROOT / "tests" / "reference" / path.name
        executed = [c for c in cells(copy) if "injected-parameters" not in c["metadata"].get("tags", [])]
        assert [source(c) for c in executed] == [source(c) for c in cells(path)], "run `make reference`"
        assert all(c["execution_count"] for c in executed if source(c).strip())
        assert [source(c) for c in cells(copy, "markdown")] == [source(c) for c in cells(path, "markdown")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_there(path: Path) -> None:
    for tree in (ast.parse(source(cell)) for cell in cells(path)):
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module):
            if node.module.startswith("recsys_"):
                module = importlib.import_module(node.module)
                modules = {path.stem for path in Path(str(module.__file__)).parent.glob("*.py")}
                assert not [a.name for a in node.names if not hasattr(module, a.name) and a.name not in modules]


def test_no_path_of_a_machine_and_no_index_host() -> None:
    machine = re.compile(r"(?<![\w.:/-])/(?:work|home|root|Users)/\w")
    index = re.compile(r"^\s*--(?:extra-)?index-url|^\s*--find-links|https?://[^\s/]*/simple\b", re.M)
    for path in tracked():
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if path.name == "test_report.py":
            text = text.replace("/home/someone/data", "")
        assert not machine.search(text), f"{path.relative_to(ROOT)}: {machine.search(text)}"
        assert not index.search(text), f"{path.relative_to(ROOT)} names a package index"


def test_the_lock_pins_every_package_by_hash() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    assert not [entry.split()[0] for entry in entries if "==" not in entry.split()[0] or "--hash=sha256:" not in entry]


def test_the_lock_covers_what_the_project_asks_for() -> None:
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M))
    asked = re.findall(r'^    "([A-Za-z0-9._-]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    names = {name.lower().replace("_", "-") for name in locked}
    missing = {name.lower() for name in asked if not name.startswith(("ignore", "Framework", "Intended"))} - names
    assert missing <= {"programming", "topic"}


def imports_of(module: Path) -> set[str]:
    """Dotted names of the project's modules that are imported when a module is; type checking and functions apart."""
    found = set()
    pending: list[ast.AST] = list(ast.parse(module.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("recsys_"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_downwards() -> None:
    for module in sorted((ROOT / "recsys_utils").rglob("*.py")):
        own = module.relative_to(ROOT / "recsys_utils").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        above = ROWS[: ROWS.index(own) + 1]
        wrong = {
            name
            for name in imports_of(module)
            if name.split(".")[0] != "recsys_utils" or name.split(".")[1] not in above
        }
        assert not wrong, f"{module.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank nor comment nor docstring, which may be as long as the reader needs."""
    text = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


# Lines of code, at what is reached; they only ever go down. One package of 10,850 lines and notebooks of 3,604 became
# these three: the notebooks' code is now the study's, and the library is what somebody else would import.
LINES = {"recsys_utils": 5_572, "recsys_study": 5_768, "notebooks": 825}
MODULES = [path for package in ("recsys_utils", "recsys_study") for path in sorted((ROOT / package).rglob("*.py"))]


def test_the_project_stays_small() -> None:
    found = {name: sum(code_lines(p) for p in MODULES if name in p.relative_to(ROOT).parts[0]) for name in LINES}
    found["notebooks"] = sum(len(lines_of(cell)) for path in NOTEBOOKS for cell in cells(path))
    assert {name: n for name, n in found.items() if n > LINES[name]} == {}
    library = [path for path in MODULES if "recsys_utils" in path.parts and path.stem != "__init__"]
    assert len(library) <= 25, "a newcomer finds the place in one look"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_can_be_taken_in(path: Path) -> None:
    """Long functions and modules are where the last reader gave up; compiled kernels must be in one piece."""
    if path.stem in NOT_YET:
        return
    assert code_lines(path) <= 400
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("recsys_"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], "a private name of elsewhere"
        if isinstance(node, ast.FunctionDef) and not re.search(
            "jit|intrinsic", "".join(map(ast.dump, node.decorator_list))
        ):
            described = len((ast.get_docstring(node, clean=False) or "").splitlines())
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 - described <= 50, node.name
            assert len([name for name in arguments if name not in ("self", "cls")]) <= 8, node.name


def test_licence_and_data_sources_are_stated() -> None:
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "MovieLens" in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_readme_shows_the_published_numbers() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_headline(text, ROOT / "reports" / "published") == text, "run `recsys readme`"


def test_published_results_are_whole_and_light() -> None:
    published = ROOT / "reports" / "published"
    names = {path.name for path in published.iterdir()}
    appendices = {path.name for path in NOTEBOOKS if path.stem.startswith("appendix")}
    assert names - {"bench.json", "bench.png"} - appendices == {
        "findings.json",
        "metrics.csv",
        "decisions.csv",
        "alpha_curves.png",
        "ml-latest-small",
        "ladder",
        "discussion",
        *({path.name for path in NOTEBOOKS} - appendices),
    }
    assert {path.name for path in (published / "ml-latest-small").iterdir()} == {
        "findings.json",
        "metrics.csv",
        "decisions.csv",
    }
    assert {path.name for path in (published / "ladder").iterdir()} == {"ladder.csv"}
    assert sum(path.stat().st_size for path in published.rglob("*")) < report.PUBLISHED_LIMIT


# ---- the packages import everywhere, and at once

IMPORT_ALL = """
import sys
sys.modules["fcntl"] = None
import importlib, pkgutil, recsys_utils
for module in pkgutil.walk_packages(recsys_utils.__path__, "recsys_utils."):
    importlib.import_module(module.name)
import recsys_study.cli, recsys_study.pipeline, recsys_study.parameters, recsys_study.run_notebook
for name in recsys_utils.__all__:
    getattr(recsys_utils, name)
"""


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_everything_imports_where_there_is_no_fcntl() -> None:
    done = python(IMPORT_ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "heavy"), [("import recsys_utils", "numpy"), ("import recsys_study.cli", "pandas|numba|pydantic|doit")]
)
def test_what_an_import_leaves_for_later(code: str, heavy: str) -> None:
    """Instead of seconds, which depend on the machine: the packages that make an import slow."""
    loaded = python(code, "-X", "importtime").stderr
    assert not re.findall(rf"\| +({heavy})$", loaded, re.M)
