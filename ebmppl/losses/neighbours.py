"""How much more probable a discrete point is with one of its coordinates at another level."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import Conditionals, indexed, levels_of, one_hot
from ebmppl.models.rbm import BernoulliRBM
from ebmppl.models.rbm_views import log1p_exp
from ebmppl.models.softmax_rbm import SoftmaxRBM

CHUNK = 1 << 21  # numbers of one chunk; with more than one chunk, backwards computes each once more


class Neighbours:
    """Log-ratios of the probabilities of a point's neighbours, which differ from it in one coordinate, to its own.

    From the energy's conditionals, from the hidden units of an RBM, or from energies.

    Args:
        energy: a discrete energy.
    """

    def __init__(self, energy: Energy) -> None:
        self._energy = (energy, indexed(energy))  # in a tuple: no module of ours
        levels = levels_of(self.target)
        self.levels, self.size = levels, len(levels.counts)
        self.binary = levels.most == 2 and not levels.ragged
        self._tables: dict[torch.device, Tensor] = {}

    @property
    def target(self) -> Energy:
        """The energy; of one-hot vectors as one of integers."""
        return self._energy[1]

    def inward(self, x: Tensor) -> Tensor:
        """Points ``(rows, *event)`` of the energy as those of the target."""
        energy, target = self._energy
        return x if target is energy else target.unconstrain(energy.unpack(x))

    def log_ratios(self, x: Tensor, which: Tensor | None = None) -> Iterator[Tensor]:
        """Some coordinates at a time, together each one once, in any order.

        Args:
            x: points of the target ``(rows, *event)``.
            which: flat coordinates in increasing order; all when None.

        Yields:
            Of two levels the log-ratio to the other one ``(rows, some)``, else to every level ``(rows, some, levels)``: 0 to
            the present one, -inf to missing ones; in nats, differentiable in parameters.
        """
        flat, target = x.reshape(len(x), -1), self.target
        conditionals = target.conditionals()
        if conditionals is not None:
            yield from self._by_conditionals(conditionals, flat, which)
            return
        every = torch.arange(self.size) if which is None else which
        if isinstance(target, (BernoulliRBM, SoftmaxRBM)):
            yield from _chunks(_HiddenUnits(target, flat), every, len(flat) * self.levels.most * target.num_hidden)
            return
        here = target(x)
        yield from _chunks(
            lambda some: self._by_energies(flat, here, some), every, flat.numel() * (self.levels.most - 1)
        )

    def _by_conditionals(self, conditionals: Conditionals, x: Tensor, which: Tensor | None) -> Iterator[Tensor]:
        table = self._table(x.device)
        for number, block in enumerate(conditionals.blocks):
            chosen = None if which is None else torch.isin(block.cpu(), which).nonzero().squeeze(1).to(x.device)
            if chosen is not None and not len(chosen):
                continue
            logits = conditionals.logits(number, x)
            if chosen is not None:
                logits, block = logits.index_select(1, chosen), block[chosen]
            own = x.index_select(1, block)
            if logits.dim() == 2:
                upper = own == table[block, 1].to(own.dtype)
                yield torch.where(upper, -logits, logits)
            else:
                at = (own.unsqueeze(-1) > table[block, : logits.shape[-1]].to(own.dtype)).sum(-1, keepdim=True)
                yield logits - logits.gather(-1, at)

    def _by_energies(self, x: Tensor, here: Tensor, some: Tensor) -> Tensor:
        """Energies at x less those with some coordinates, one at a time, at each other level."""
        table = self._table(x.device)[some].to(x.dtype)  # (some, levels)
        own = x.index_select(1, some.to(x.device)).unsqueeze(-1)
        at = (own > table).sum(-1)  # values increase
        others = torch.arange(self.levels.most - 1, device=x.device).expand(*at.shape, -1)
        others = others + (others >= at.unsqueeze(-1))  # numbers of the other levels
        values = table.expand(len(x), -1, -1).gather(-1, others)  # (rows, some, levels - 1)
        tried = x[:, None, None, :].repeat(1, len(some), values.shape[-1], 1)
        tried.scatter_(-1, some.to(x.device).view(1, -1, 1, 1).expand(*values.shape, 1), values.unsqueeze(-1))
        energies = self.target(tried.reshape(-1, *self.target.event_shape)).reshape(values.shape)
        ratios = here.view(-1, 1, 1) - energies
        if self.binary:
            return ratios.squeeze(-1)
        if self.levels.ragged:
            missing = others >= self.levels.counts.to(x.device)[some.to(x.device)].view(1, -1, 1)
            ratios = ratios.masked_fill(missing, -torch.inf)
        return torch.cat([torch.zeros_like(ratios[..., :1]), ratios], -1)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.levels.table.to(device)
        return self._tables[device]


class _HiddenUnits:
    """Log-ratios of an RBM's visible units: a flip moves the inputs of the hidden units by a row of the weights."""

    def __init__(self, rbm: BernoulliRBM | SoftmaxRBM, x: Tensor) -> None:
        self.rbm, self.x = rbm, x
        self.inputs = rbm.hidden_logits(x)
        self.here = log1p_exp(self.inputs).sum(-1)

    def __call__(self, some: Tensor) -> Tensor:
        """As ``Neighbours.log_ratios`` yields."""
        rbm, some = self.rbm, some.to(self.x.device)
        own = self.x.index_select(1, some)
        weights, bias = rbm.W.index_select(0, some), rbm.b.index_select(0, some)
        if isinstance(rbm, BernoulliRBM):
            sign = 1 - 2 * own.to(weights.dtype)
            moved = torch.addcmul(self.inputs.unsqueeze(1), sign.unsqueeze(-1), weights)
            return torch.addcmul(log1p_exp(moved).sum(-1) - self.here.unsqueeze(1), sign, bias)
        at = one_hot(own, rbm.num_categories, weights.dtype)  # (rows, some, categories)
        without = self.inputs.unsqueeze(1) - torch.einsum("rsk,skh->rsh", at, weights)
        logits = log1p_exp(without.unsqueeze(2) + weights).sum(-1) + bias
        ratios = logits - (logits * at).sum(-1, keepdim=True)
        return ratios.sum(-1) if rbm.num_categories == 2 else ratios  # the present one's is 0


def _chunks(ratios: Callable[[Tensor], Tensor], which: Tensor, numbers: int) -> Iterator[Tensor]:
    """Of some coordinates at a time, as many as keep a chunk small; ``numbers`` are those of one coordinate."""
    parts = which.split(max(1, CHUNK // numbers))
    for part in parts:
        if len(parts) > 1 and torch.is_grad_enabled():
            yield checkpoint(ratios, part, use_reentrant=False)
        else:
            yield ratios(part)
