"""Log partition functions: exact ones. A method has ``estimate(energy) -> LogZ``, a file of its own and one line here."""

from ebmppl.partition.exact import Exact, Moments
from ebmppl.partition.logz import LogZ, Method, log_partition

__all__ = ["Exact", "LogZ", "Method", "Moments", "log_partition"]
