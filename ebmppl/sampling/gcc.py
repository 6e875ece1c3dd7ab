"""C++ that needs nothing of torch, compiled by GCC itself.

Inductor's builder looks for headers and links with libraries for as long as a small unit takes to compile.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# Arithmetic as Inductor has it: every operation rounds by itself, NaN and infinities count, loops are vectors where they
# are written so.
_FLAGS = """
-O2 -std=c++20 -march=native -fPIC -fopenmp -fno-tree-loop-vectorize -ffp-contract=off -fmath-errno -pipe -w -shared
""".split()

# lines of /proc/cpuinfo by which processors differ: x86's, ARM's (whose cores may be unlike), RISC-V's
_TELLING = "flags", "Features", "CPU implementer", "CPU variant", "CPU part", "isa"


def build(source: str, compiler: str, folder: Path) -> Path:
    """Compile a shared library, or find it in a folder.

    Args:
        source: of the library.
        compiler: a command.
        folder: of libraries by what they were made of.

    Raises:
        OSError: where there is no such compiler or folder.
        subprocess.CalledProcessError: where it fails.
    """
    found = shutil.which(compiler)
    if found is None:
        raise FileNotFoundError(f"no compiler {compiler!r}")
    command = [found, *_FLAGS]
    made_of = repr((command, _processor(), source))
    library = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:40]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:  # so that nobody else finds half a library
        text, made = Path(own, "source.cpp"), Path(own, "library.so")
        text.write_text(source)
        subprocess.run([*command, "-o", made, text], check=True, capture_output=True, text=True)
        os.replace(made, library)
    return library


def _processor() -> str:
    """What "native" stands for; one cache may be several machines' own."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(_TELLING)})])
