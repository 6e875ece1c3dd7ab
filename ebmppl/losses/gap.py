"""The energy gap between data and model samples, whose gradient is that of the negative log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.words import bits_by_word, labels, words
from ebmppl.losses.base import BoundLoss, Data, checked_data
from ebmppl.losses.negative import KernelFactory, ModelChains, mixed
from ebmppl.models.rbm_training import Trained
from ebmppl.models.rbm_views import RBMJoint

Hidden = Literal["mean", "sample"]


def require_kernel(kernel: object) -> None:
    """Raise ``ValueError`` for something else than a factory."""
    factory = callable(kernel) and not isinstance(kernel, Kernel)
    require(factory, "kernel as a factory of kernels of an energy, such as eb.Gibbs", repr(kernel))


def require_start(start: object) -> None:
    """Raise ``ValueError`` for something else than a way to draw points, or None."""
    drawn = start is None or hasattr(start, "sampler")
    require(drawn, "start as a way to draw points, Uniform(...) or FromData(points)", f"a {type(start).__name__}")


def require_hidden(hidden: object) -> None:
    """Raise ``ValueError`` for something else than "mean" or "sample"."""
    require(hidden in ("mean", "sample"), "hidden 'mean' or 'sample'", repr(hidden))


class EnergyGap(BoundLoss):
    r"""Abstract: the loss :math:`\overline{E(x^+)} - \overline{E(x^-)}`, in nats, with chains for the second mean.

    Where the energy is one of several sites, data may lack some: these are hidden. Of an RBM's ``joint`` the hidden
    layer comes from its exact posterior; of other energies from the guide, called with the data by site, which
    returns the others by site.

    Args:
        energy: what is trained.
        guide: gives hidden sites, for energies other than an RBM's ``joint``.
        kernel: makes the kernel of the chains.
        seed: of the chains, and of hidden units.
        hidden: of an RBM's ``joint``, "mean" for gradients in the mean over the hidden layer given the visible one, which
            are those of the free energy; "sample" for energies at bits.
    """

    begins_at_data: ClassVar[bool] = False  # the chains, so that hidden sites are theirs, too

    def __init__(self, energy: Energy, guide: Any, kernel: KernelFactory, seed: int | None, hidden: Hidden) -> None:
        super().__init__(energy, guide)
        self.chains = ModelChains(energy, kernel, seed)
        self.hidden = hidden
        self._labels: Tensor | None = None  # of an RBM's hidden units
        self._energies: tuple[Tensor, Tensor] | None = None  # of the last call: data and model
        self._logits: tuple[Tensor, Tensor] | None = None  # points of an RBM's joint, and their hidden units' log-odds

    def data(self, x: Data) -> Tensor:
        """Checked points ``(rows, *event)``, hidden sites filled in; of an RBM's joint v alone where h is not looked at."""
        energy = self.energy
        if isinstance(energy, RBMJoint):
            v = x.get("v") if isinstance(x, Mapping) and set(x) == {"v"} else x
            if isinstance(v, Tensor) and (v is not x or v.shape[1:] != energy.event_shape):
                v = checked_data(energy.rbm, v)
                used = self.begins_at_data or self.hidden == "sample"
                if not used:
                    return v
                h, logits = self._posterior(energy, v)
                points = energy.pack({"v": v, "h": h})
                self._logits = points, logits
                return points
        elif isinstance(x, Mapping) and set(x) < set(energy.sites):
            return checked_data(energy, {**x, **self._guided(x)})
        return checked_data(energy, x)

    @torch.no_grad()
    def _posterior(self, energy: RBMJoint, v: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden bits of an RBM given its visible units, and their log-odds."""
        seed = mixed(int(self.chains.seed) + 1, int(self.step))
        keys = torch.empty((2, len(v), 1), dtype=torch.int32, device=v.device)
        keys.random_(-(1 << 31), 1 << 31, generator=torch.Generator(v.device).manual_seed(seed))
        logits = energy.rbm.hidden_logits(v)
        if self._labels is None or self._labels.device != v.device:
            self._labels = labels(energy.rbm.num_hidden, device=v.device)
        return bits_by_word(logits, words(self._labels, keys[0], keys[1])), logits

    def _guided(self, x: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        missing = sorted(set(self.energy.sites) - set(x))
        found = self.guide(x) if callable(self.guide) else None
        got = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        require(
            isinstance(found, Mapping) and sorted(found) == missing,
            f"data, or a guide that gives the sites {missing}",
            got,
        )
        return {name: value.detach() for name, value in found.items()}  # type: ignore[union-attr]

    @property
    def summed(self) -> bool:
        """Whether energies are those with an RBM's hidden layer summed out."""
        return isinstance(self.energy, RBMJoint) and self.hidden == "mean"

    def gap(self, x: Tensor, model: Tensor | None, known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The terms of the loss at data and model samples ``(rows, *event)``, which count as constants.

        Args:
            x: data.
            model: samples; None where all that is needed of them is ``known``.
            known: of these, what a kernel tells: see ``Kernel.known``.
        """
        rows, energy = len(x), self.energy
        if isinstance(energy, RBMJoint) and self.summed:
            of_data, of_samples = self._free_energies(energy, x, model, known or {})
            self._energies = of_data.energies, of_samples.energies
            return {"data": of_data.mean, "model": -of_samples.mean}
        assert model is not None  # nothing else is known of them
        both = energy(torch.cat([x, model.detach()]))  # one call for both
        data, samples = both[:rows], both[rows:]
        self._energies = data.detach(), samples.detach()
        return {"data": data.mean(), "model": -samples.mean()}

    def _free_energies(
        self, energy: RBMJoint, x: Tensor, model: Tensor | None, known: Mapping[str, Tensor]
    ) -> list[Trained]:
        """Of data and samples, by the hidden log-odds where these are at hand: a product each that needn't be made."""
        rbm, (at, logits) = energy.rbm, self._logits or (None, None)
        self._logits = None
        found = known.get("visible")
        v = x if x.shape[1:] == rbm.event_shape else energy.unpack(x)["v"]
        if found is None:
            assert model is not None
            found = energy.unpack(model.detach())["v"].to(rbm.W.dtype)
        v, of_model = v.to(rbm.W.dtype), found
        with torch.no_grad():
            of_data = logits if at is x and logits is not None else rbm.hidden_logits(v)
            of_samples = known["hidden_logits"] if "visible" in known else rbm.hidden_logits(of_model)
        return rbm.trained_energies((v, of_data), (of_model, of_samples))

    def diagnostics(self) -> dict[str, Any]:
        """Of the last call: ``gap`` in nats and its standard error ``gap_error`` (for independent rows), ``acceptance``."""
        if self._energies is None:
            return {}
        data, model = (energies.double() for energies in self._energies)
        variance = sum(
            (e.var(unbiased=True) / len(e) if len(e) > 1 else e.new_tensor(torch.nan)) for e in (data, model)
        )
        return {
            "gap": float(data.mean() - model.mean()),
            "gap_error": float(torch.as_tensor(variance).sqrt()),
            "acceptance": self.chains.acceptance(),
        }
