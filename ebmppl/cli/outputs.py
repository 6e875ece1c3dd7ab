"""Files that a run writes: looked at before sampling, written after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ebmppl.cli.errors import UserError
from ebmppl.energies import Energy
from ebmppl.sampling import MCMC


class Outputs(NamedTuple):
    """Where to write what; None for nothing."""

    save: Path | None = None
    out: Path | None = None
    plot: Path | None = None
    rank_plot: Path | None = None
    lattice_plot: Path | None = None

    def given(self) -> dict[str, Path]:
        """Option -> path."""
        return {f"--{name.replace('_', '-')}": path for name, path in self._asdict().items() if path is not None}

    def check(self) -> None:
        """Find out whether all can be written.

        Raises:
            UserError: for an unknown suffix, a missing folder, a path that can't be written, or one that comes twice.
        """
        seen: dict[Path, str] = {}
        for option, path in self.given().items():
            _check_suffix(option, path)
            _check_writable(option, path)
            twin = seen.setdefault(path.resolve(), option)
            if twin != option:
                raise UserError(f"expected different files for {twin} and {option}, got {path} for both")

    def check_for(self, energy: Energy) -> None:
        """Raise ``UserError`` where ``--lattice-plot`` has nothing to draw."""
        if self.lattice_plot is not None and all(len(shape) != 2 for shape in energy.sites.values()):
            shapes = {name: tuple(shape) for name, shape in energy.sites.items()}
            raise UserError(f"expected a site of two axes for --lattice-plot, got {shapes}")

    def write(self, mcmc: MCMC, idata: Callable[[], Any]) -> Iterator[tuple[str, OSError | None]]:
        """Write all; yields what goes where, and the error where one came up.

        Args:
            mcmc: a run with draws.
            idata: gives it as ArviZ sees it; called when the run itself is saved.
        """
        for option, path in self.given().items():
            what, write = _WRITERS[option]
            try:
                write(mcmc, idata, path)
            except OSError as error:  # a full disk must not take the other files along
                yield f"{what} to {path}", error
            else:
                yield f"{what} to {path}", None


def _write_netcdf(_: MCMC, idata: Callable[[], Any], path: Path) -> None:
    idata().to_netcdf(str(path))


def _save(mcmc: MCMC, _: Callable[[], Any], path: Path) -> None:
    mcmc.save(path)


def _to_files_only() -> None:
    import matplotlib as mpl

    mpl.use("agg")  # no window, whatever display there is


def _plot_trace(_: MCMC, idata: Callable[[], Any], path: Path) -> None:
    from ebmppl.diagnostics.plots import plot_trace

    _to_files_only()
    plot_trace(idata(), path=path)


def _plot_rank(_: MCMC, idata: Callable[[], Any], path: Path) -> None:
    from ebmppl.diagnostics.plots import plot_rank

    _to_files_only()
    plot_rank(idata(), path=path)


def _plot_lattice(_: MCMC, idata: Callable[[], Any], path: Path) -> None:
    from ebmppl.diagnostics.pictures import plot_lattice

    _to_files_only()
    plot_lattice(idata(), path=path)


_WRITERS: dict[str, tuple[str, Callable[[MCMC, Callable[[], Any], Path], None]]] = {
    "--out": ("draws", _write_netcdf),
    "--save": ("the run (for MCMC.load)", _save),
    "--plot": ("trace plot", _plot_trace),
    "--rank-plot": ("rank plot", _plot_rank),
    "--lattice-plot": ("plot of states", _plot_lattice),
}


def _check_suffix(option: str, path: Path) -> None:
    wanted = {"--out": [".nc"], "--save": [".pt", ".pth"]}.get(option) or _plot_suffixes()
    if path.suffix.lower() not in wanted:
        raise UserError(f"expected {option} as a file that ends in {' or '.join(wanted)}, got {str(path)!r}")


def _plot_suffixes() -> list[str]:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    common = dict.fromkeys(["png", "pdf", "svg", *sorted(known)])
    return [f".{kind}" for kind in common if kind not in ("raw", "rgba")]


def _check_writable(option: str, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"expected {option} in a folder that is there, got {str(path)!r}: {str(folder)!r} {what}")
    if path.is_dir():
        raise UserError(f"expected {option} as a file, got the folder {str(path)!r}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"expected {option} as a file that can be written, got {str(path)!r}: permission denied")
