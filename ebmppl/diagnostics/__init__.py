"""Diagnostics: convergence of chains, a summary that says what to distrust, plots."""

from ebmppl.diagnostics.convergence import convergence
from ebmppl.diagnostics.distances import TwoSampleTest, two_sample_test
from ebmppl.diagnostics.pictures import plot_filters, plot_lattice
from ebmppl.diagnostics.plots import plot_rank, plot_trace
from ebmppl.diagnostics.summary import Summary, summarize

__all__ = [
    "Summary",
    "TwoSampleTest",
    "convergence",
    "plot_filters",
    "plot_lattice",
    "plot_rank",
    "plot_trace",
    "summarize",
    "two_sample_test",
]
