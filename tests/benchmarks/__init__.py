"""Runnable benchmarks: every script times its peers in one process, alternating, and prints ratios with their spread."""
