"""Batches from tensors, arrays, datasets or loaders, in an order that can be saved and gone on with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.supports import is_discrete
from ebmppl.losses.base import Data, checked_data
from ebmppl.losses.scores import ScoreNetwork


class Batches(ABC):
    """Abstract: the data of a run, batch after batch and epoch after epoch.

    Args:
        energy: what is trained; floating point data come at its dtype and device.
        epochs: how often the data are gone through; without end when None.

    Attributes:
        epoch: of the last batch.
    """

    def __init__(self, energy: Any, epochs: int | None) -> None:
        self.energy, self.epochs, self.epoch = energy, epochs, 0

    @abstractmethod
    def take(self) -> Data | None:
        """The next batch, None when all epochs are over."""

    @abstractmethod
    def once(self) -> Iterator[Data]:
        """All batches of one epoch, in order; nothing moves."""

    @abstractmethod
    def per_epoch(self) -> int | None:
        """Batches in an epoch, None where that isn't known."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where it is."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where it was.

        Raises:
            ValueError: for the place in other data.
        """


class Rows(Batches):
    """Rows of tensors or of a dataset with numbered items; the order is a function of the seed and the epoch.

    Args:
        energy: what is trained.
        epochs: how often.
        data: tensors, by site or one, or a dataset.
        batch_size: rows of a batch; the last one of an epoch has what is left.
        seed: of the order; None for the rows' own order.
    """

    def __init__(
        self, energy: Any, epochs: int | None, data: Data | Dataset, batch_size: int, seed: int | None
    ) -> None:
        super().__init__(energy, epochs)
        self.values, self.batch_size, self.seed = data, batch_size, seed
        self.rows = _count(data)
        self.taken = 0
        self._order: tuple[int, Tensor] | None = None

    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.rows // self.batch_size)

    def take(self) -> Data | None:
        """The next batch."""
        epoch, number = divmod(self.taken, self.per_epoch())
        if epoch == self.epochs:
            return None
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._shuffled(epoch)
        batch = self._rows(self._order[1][number * self.batch_size : (number + 1) * self.batch_size])
        self.epoch, self.taken = epoch, self.taken + 1
        return batch

    def once(self) -> Iterator[Data]:
        """All rows in their own order."""
        for rows in torch.arange(self.rows).split(self.batch_size):
            yield self._rows(rows)

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken, of which data."""
        return {"taken": self.taken, "seed": self.seed, "rows": self.rows, "batch_size": self.batch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after so many batches, in the saved order."""
        own = {"rows": self.rows, "batch_size": self.batch_size}
        saved = {name: state.get(name) for name in own}
        if saved != own or (state["seed"] is None) is not (self.seed is None):
            raise ValueError(f"expected the data and order that were saved, {dict(state)}, got {self.state_dict()}")
        self.taken, self.seed, self._order = state["taken"], state["seed"], None
        self.epoch = max(0, self.taken - 1) // self.per_epoch()

    def _shuffled(self, epoch: int) -> Tensor:
        if self.seed is None:
            return torch.arange(self.rows)
        # numbers of epochs and seeds stay apart, so that no run repeats another's orders one epoch later
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))

    def _rows(self, rows: Tensor) -> Data:
        if isinstance(self.values, Tensor):
            return self.values[rows.to(self.values.device)]
        if isinstance(self.values, Mapping):
            return {name: value[rows.to(value.device)] for name, value in self.values.items()}
        items = [self.values[row] for row in rows.tolist()]
        where = f" in items {rows[0]} ... of the dataset"
        return _prepared(self.energy, default_collate([_first(self.energy, item) for item in items]), where)


class Loaded(Batches):
    """Batches of a loader, or of anything that can be iterated again and again.

    The order is the loader's. Its generators (torch's global one, those of loader and sampler) are noted when an epoch
    begins, so that a saved run begins the same epoch again and skips what was taken. Python's and NumPy's global
    generators are not: a dataset that draws from these goes on with others.
    """

    def __init__(self, energy: Any, epochs: int | None, loader: Iterable[Any]) -> None:
        super().__init__(energy, epochs)
        if iter(loader) is loader:
            raise ValueError("expected a loader that can be iterated again, got an iterator, which is over after once")
        self.loader = loader
        self.current = 0  # epoch under way
        self.taken = 0  # of it
        self._batches: Iterator[Any] | None = None
        self._began: list[Tensor] = []

    def per_epoch(self) -> int | None:
        """What the loader says."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def take(self) -> Data | None:
        """The next batch of the loader."""
        while self.current != self.epochs:
            if self._batches is None:
                self._began = [generator.get_state() for generator in self._generators()]
                self._batches, self.taken = iter(self.loader), 0
            batch = next(self._batches, None)
            if batch is not None:
                self.epoch, self.taken = self.current, self.taken + 1
                where = f" in batch {self.taken - 1} of epoch {self.epoch}"
                return _prepared(self.energy, _first(self.energy, batch), where)
            if not self.taken:
                raise ValueError("expected a loader with batches, got an empty one")
            self._batches, self.taken, self.current = None, 0, self.current + 1
        return None

    def once(self) -> Iterator[Data]:
        """The loader's batches."""
        number = -1
        for number, batch in enumerate(self.loader):
            yield _prepared(self.energy, _first(self.energy, batch), f" in batch {number}")
        if number < 0:
            raise ValueError("expected a loader with batches, got an empty one")

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it, and the generators when it began and now."""
        now = [generator.get_state() for generator in self._generators()]
        return {"epoch": self.current, "taken": self.taken, "began": list(self._began), "now": now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the epoch as it was begun and skip what was taken."""
        generators = self._generators()
        if len(state.get("now", ())) != len(generators):
            raise ValueError("expected a loader with as many generators as the one that was saved, got another one")
        self.current, self.taken, self._began = state["epoch"], state["taken"], list(state["began"])
        self.epoch, self._batches = self.current, None
        if self.taken:
            _set(generators, self._began)
            self._batches = iter(self.loader)
            for number in range(self.taken):
                if next(self._batches, None) is None:
                    raise ValueError(f"expected a loader of at least {self.taken} batches, as saved, got {number}")
        _set(generators, state["now"])

    def _generators(self) -> list[torch.Generator]:
        """Torch's own, and those of loader and samplers, each once."""
        samplers = [getattr(self.loader, name, None) for name in ("sampler", "batch_sampler")]
        owners = [self.loader, *samplers, *(getattr(sampler, "sampler", None) for sampler in samplers)]
        found = [torch.default_generator]
        for owner in owners:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
                found.append(generator)
        return found


def as_batches(energy: Any, data: Any, batch_size: int, epochs: int | None = None, seed: int | None = None) -> Batches:
    """Batches of tensors, arrays, dicts of these by site, a ``Dataset``, or a loader.

    Raises:
        ValueError: for something else, no rows, other shapes or dtypes, or values that are not finite or allowed.
    """
    if isinstance(data, (Tensor, np.ndarray, Mapping)):
        values = _prepared(energy, data, "")
        if isinstance(energy, Energy) and _complete(energy, values):
            checked_data(energy, values)
        return Rows(energy, epochs, values, batch_size, seed)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return Rows(energy, epochs, data, batch_size, seed)
    if isinstance(data, IterableDataset):
        return Loaded(energy, epochs, DataLoader(data, batch_size=batch_size))
    if isinstance(data, (str, bytes, tuple)) or not isinstance(data, Iterable):
        wanted = "a tensor, an array, a dict of these by site, a list of batches, a Dataset or a loader"
        raise ValueError(f"expected data as {wanted}, got {type(data).__name__}")
    return Loaded(energy, epochs, data)


def _first(energy: Any, item: Any) -> Any:
    """What is modelled of an item or batch: of tuples the first member, unless the model could take the others, labels."""
    if not isinstance(item, (tuple, list)) or not len(item):
        return item
    if len(item) > 1 and not isinstance(energy, (Energy, ScoreNetwork)):
        wanted = "items that are points, or dicts {'x': points, 'label': labels}"
        raise ValueError(f"expected {wanted}, got {type(item).__name__}s of {len(item)}, whose labels would be lost")
    return item[0]


def _prepared(energy: Any, data: Any, where: str) -> Data:
    """Tensors, floating point ones at the energy's dtype, on its device."""
    if isinstance(data, Mapping):
        return {name: _tensor(energy, name, value, where) for name, value in data.items()}
    return _tensor(energy, None, data, where)


def _tensor(energy: Any, site: str | None, value: Any, where: str) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = _from_array(value, where)
    if not isinstance(value, Tensor) or value.is_complex() or value.layout is not torch.strided:
        got = getattr(value, "dtype", type(value).__name__)
        got = got if getattr(value, "layout", torch.strided) is torch.strided else f"{got} {value.layout}"
        raise ValueError(f"expected data as dense tensors or arrays of real numbers, got {got}{where}")
    dtype, device = dtype_and_device(energy)
    if value.is_floating_point():
        _require_finite(value, site, where)
        return value.to(device, dtype)
    if isinstance(energy, Energy):
        sites = [site] if site in energy.sites else list(energy.sites)
        if not all(is_discrete(energy.site_support(name)) for name in sites):
            raise ValueError(f"expected floating point data for a continuous energy, got {value.dtype}{where}")
    return value.to(device)


def _from_array(value: np.ndarray, where: str) -> Tensor:
    """Any array of real numbers, also those in another order of bytes or memory, which torch doesn't take."""
    if np.ma.is_masked(value):
        raise ValueError(f"expected data without gaps, got a masked array{where}")
    dtype = np.dtype(np.float64) if value.dtype.type is np.longdouble else value.dtype.newbyteorder("=")
    value = np.ascontiguousarray(value, dtype=dtype)
    return torch.from_numpy(value if value.flags.writeable else value.copy())


def _require_finite(value: Tensor, site: str | None, where: str) -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        row, *at = bad.nonzero()[0].tolist()
        name = "" if site is None else f" of site {site!r}"
        got = f"{value[(row, *at)].item()} at row {row}, coordinate {tuple(at)}"
        raise ValueError(f"expected finite data{name}, got {got}{where}")


def _complete(energy: Energy, values: Data) -> bool:
    """Whether these are all sites; a loss may know how to find hidden ones."""
    if isinstance(values, Mapping):
        return not set(values) < set(energy.sites)
    return not energy.packed or values.shape[1:] == energy.event_shape


def _count(data: Any) -> int:
    counts = {len(value) for value in data.values()} if isinstance(data, Mapping) else {len(data)}
    if len(counts) != 1 or not min(counts):
        raise ValueError(f"expected at least one row of data, as many for each site, got {sorted(counts)}")
    return counts.pop()


def _set(generators: list[torch.Generator], states: Iterable[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.cpu())
