"""Diagnostics: convergence of chains, a summary that says what to distrust, plots."""

from ebmppl.diagnostics.convergence import convergence
from ebmppl.diagnostics.plots import plot_rank, plot_trace
from ebmppl.diagnostics.summary import Summary, summarize

__all__ = ["Summary", "convergence", "plot_rank", "plot_trace", "summarize"]
