"""Caps that keep the code readable; even the best libraries grow one giant when nothing stops them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "ebmppl").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_is_one_thought_and_a_function_fits_a_screen(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name
