"""Errors and warnings: a wrong argument is a ``ValueError``, what ends a run a ``SamplingError``."""

from __future__ import annotations


class EnergyError(ValueError):
    """An energy does not keep its contract: shape, dtype, device, finiteness, gradient or row independence."""


class SamplingError(RuntimeError):
    """A run can't go on; the message says where and what to try."""


class SamplingWarning(UserWarning):
    """A run went on or was cut short, and its result should be read with care."""
