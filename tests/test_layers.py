"""Imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ebmppl"

# from the bottom to the top; packages of one line don't import one another, except as the line says
LAYERS = [
    {"arguments", "errors", "__version__"},
    {"energies", "score"},
    {"models"},
    {"kernels"},
    {"sampling"},
    {"losses", "partition"},
    {"interop", "training", "checkpoint"},
    {"diagnostics"},
    {"cli"},
]
# convenience that reaches up, from inside a function only: file -> the packages it may import
UPWARD = {
    "score/contract.py": {"energies"},  # when two batches' answers are the same
    "energies/score_energy.py": {"score"},  # how a conditional score looks at what it is given
    "kernels/base.py": {"sampling"},  # Pyro's interface, written once in the base
    "kernels/under_pyro.py": {"sampling"},  # and the chains behind it
    "score/velocity.py": {"sampling"},  # compiled for likelihoods
    "sampling/mcmc.py": {"diagnostics", "interop"},  # mcmc.to_arviz(), mcmc.summary()
}


def _level(package: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if package in layer)


def _imports(source: str) -> list[tuple[str, bool]]:
    """Packages of ebmppl that a module imports, and whether at its top level (type-checking imports don't count)."""
    found = []

    def visit(node: ast.AST, *, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("ebmppl"):
                parts = (child.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in child.names]
                found.extend((name, top) for name in names)
            elif isinstance(child, ast.Import):
                found.extend((a.name.split(".")[1], top) for a in child.names if a.name.startswith("ebmppl."))
            visit(child, top=top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(source), top=True)
    return found


def _violations(file: str, source: str) -> list[str]:
    own = file.split("/")[0].removesuffix(".py")
    wrong = []
    for package, top in _imports(source):
        if package == own or _level(package) < _level(own):
            continue
        if top or package not in UPWARD.get(file, set()):
            wrong.append(f"{file} imports {package}")
    return wrong


def _files() -> dict[str, str]:
    files = {str(p.relative_to(PACKAGE)): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}
    return {name: text for name, text in files.items() if name not in ("__init__.py", "__main__.py")}


def test_imports_go_down_only() -> None:
    assert [wrong for name, text in _files().items() for wrong in _violations(name, text)] == []


def test_every_listed_exception_is_used() -> None:
    files = _files()
    for name, packages in UPWARD.items():
        used = {package for package, top in _imports(files[name]) if not top}
        assert packages <= used, f"{name} no longer imports {packages - used}"


def test_the_check_catches_an_upward_import() -> None:
    assert _violations("energies/made_up.py", "from ebmppl.kernels import HMC") == [
        "energies/made_up.py imports kernels"
    ]
    inside = "def f():\n    import ebmppl.cli.app\n"
    assert _violations("kernels/made_up.py", inside) == ["kernels/made_up.py imports cli"]
    assert _violations("kernels/made_up.py", "from ebmppl.energies import Energy") == []
