"""``fit``: exact resume, equal batches from every source, averages, clipping, schedules, validation, the last good state."""

from __future__ import annotations

import copy
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ebmppl as eb
from ebmppl.energies import MLPEnergy
from ebmppl.errors import NonFiniteLoss
from ebmppl.losses import DiffusionScoreMatching
from ebmppl.losses.base import BoundLoss, Loss
from ebmppl.score import VP, NoisePrediction, TimeMLP
from ebmppl.training import EMA, Fit, Monitor, RaiseK, Step, TensorBoard
from ebmppl.training.batches import as_batches

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BITS = (torch.rand((23, 6), generator=generator(1)) < 0.3).float()
REALS = torch.randn((23, 2), generator=generator(2))


def rbm(seed: int = 3) -> eb.models.BernoulliRBM:
    return eb.models.BernoulliRBM(6, 3, generator=generator(seed))


def pcd(**settings: Any) -> eb.losses.PCD:
    return eb.losses.PCD(**{"k": 1, "kernel": eb.Gibbs, "num_chains": 7, "recent": 25, "seed": 5} | settings)


def quiet(loss: Loss, energy: Any, data: Any, **settings: Any) -> Fit:
    return eb.fit(loss, energy, data, **{"progress": False, "seed": 0, "batch_size": 5} | settings)


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return (
            torch.equal(a, b) or (a.isnan() == b.isnan()).all().item() and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def values(records: list[Step]) -> list[Any]:
    """Records but for their times."""
    return [tuple(record._replace(seconds=0.0, health=None)) for record in records]


class Dropout(eb.Energy):
    """Draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__((2,))
        torch.manual_seed(11)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + x.square().sum(-1)


class MeanEnergy(Loss):
    """Of the data alone; with a factor that a test may set."""

    factor = 1.0

    def bind(self, energy: Any, guide: Any) -> BoundLoss:
        loss = self

        class Bound(BoundLoss):
            def terms(self, x: Tensor) -> dict[str, Tensor]:
                return {"mean": loss.factor * self.energy(x).mean()}

        return Bound(energy, guide)


# Exact resume.


def schedules() -> dict[str, Any]:
    lr = torch.optim.lr_scheduler
    return {
        "none": None,
        "cosine": partial(lr.CosineAnnealingLR, T_max=30),
        "one cycle": partial(lr.OneCycleLR, max_lr=0.1, total_steps=60),
        "in turn": lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, 5), lr.ExponentialLR(o, 0.9)], [5]),
        "milestones": partial(lr.MultiStepLR, milestones=[4, 9, 12]),
        "function": partial(lr.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
        "up and down": partial(lr.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3, cycle_momentum=False),
    }


def loader(seed: int | None) -> DataLoader:
    return DataLoader(TensorDataset(REALS), 5, shuffle=True, generator=None if seed is None else generator(seed))


def runs() -> dict[str, Callable[[], Fit]]:
    langevin = partial(eb.Langevin, step_size=0.1)

    def mlp() -> MLPEnergy:
        return MLPEnergy(2, (8,), confine=0.5, generator=generator(4))

    def continuous(**settings: Any) -> eb.losses.PCD:
        return pcd(kernel=langevin, reinit=0.2, **settings)

    adam = partial(torch.optim.Adam, lr=0.05)
    found = {
        f"rbm, {name}": partial(lambda s: quiet(pcd(), rbm(), BITS, steps=17, schedule=s, ema=0.9), s)
        for name, s in schedules().items()
    }
    tempered = lambda energy: eb.ParallelTempering(eb.Gibbs(energy), 3)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return found | {
        "replay buffer": lambda: quiet(continuous(buffer=20), mlp(), REALS, epochs=4, optimizer=adam, clip=0.1),
        "tempering": lambda: quiet(pcd(kernel=tempered), rbm(), BITS, steps=17, optimizer=sgd),
        "adapted": lambda: quiet(pcd(kernel=eb.HMC, warmup=30), mlp(), REALS, steps=17),
        "loader": lambda: quiet(continuous(), mlp(), loader(8), epochs=4),
        "loader on the global generator": lambda: quiet(continuous(), mlp(), loader(None), epochs=4),
        "dropout": lambda: quiet(MeanEnergy(), Dropout(), REALS, steps=17, validation=REALS, validate_every=3),
        "contrastive": lambda: quiet(eb.losses.CD(k=2, kernel=eb.Gibbs, seed=1), rbm(), BITS, steps=17),
        "monitor": lambda: quiet(
            pcd(), rbm(), BITS, steps=60, monitor=Monitor([RaiseK()], every=5, r_hat=1.0, statistics={"m": _on})
        ),
    }


def _on(x: Tensor) -> Tensor:
    return x.float().mean(-1)


@pytest.mark.parametrize("name", runs())
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    make = runs()[name]
    torch.manual_seed(21)
    whole = make()
    expected = whole.run()
    torch.manual_seed(21)
    first = make()
    n = 43 if name == "monitor" else 7  # in the middle of an epoch, and after the first action
    records = list(itertools.islice(first, n))
    first.save(tmp_path / "run")
    torch.manual_seed(99)
    second = make()
    second.bound.chains.seed.fill_(1) if hasattr(second.bound, "chains") else None
    records += second.load(tmp_path / "run").run()
    assert values(records) == values(expected)
    assert same(second.snapshot(), whole.snapshot())
    assert getattr(second.bound, "k", None) == getattr(whole.bound, "k", None)
    if name == "monitor":
        assert whole.bound.k > 1
        assert same([r.health for r in records], [r.health for r in expected])
        assert same(second.monitor.state_dict(), whole.monitor.state_dict())


def test_leaving_the_loop_stops_and_another_loop_goes_on() -> None:
    whole = quiet(pcd(), rbm(), BITS, epochs=3)
    expected = whole.run()
    assert len(expected) == 3 * 5
    assert [record.epoch for record in expected] == [0] * 5 + [1] * 5 + [2] * 5
    run = quiet(pcd(), rbm(), BITS, epochs=3)
    records = []
    for record in run:
        records.append(record)
        if record.step == 6:
            break
    assert run.step == 7
    records += run.run()
    assert values(records) == values(expected)
    assert run.run() == []


def test_a_file_is_refused_that_does_not_fit(tmp_path: Path) -> None:
    run = quiet(pcd(), rbm(), BITS, steps=3)
    run.run()
    run.save(tmp_path / "run")
    before = copy.deepcopy(run.bound.state_dict())
    for other, told in [
        (quiet(pcd(num_chains=8), rbm(), BITS, steps=3), r"points of \(7, 6\) .* as saved, got \(8, 6\)"),
        (quiet(pcd(), eb.models.BernoulliRBM(6, 4), BITS, steps=3), r"energy.W of \(6, 3\)"),
        (quiet(pcd(), rbm(), BITS, steps=3, ema=0.9), "'ema': None.*'ema': 0.9"),
        (quiet(pcd(), rbm(), BITS, steps=3, optimizer=partial(torch.optim.SGD, lr=0.1)), "Adam.*SGD"),
        (quiet(pcd(), rbm(), BITS[:20], steps=3), "'rows': 23.*'rows': 20"),
        (quiet(eb.losses.CD(kernel=eb.Gibbs), rbm(), BITS, steps=3), "BoundPCD.*BoundCD"),
    ]:
        own = copy.deepcopy(other.bound.state_dict())
        with pytest.raises(ValueError, match=told):
            other.load(tmp_path / "run")
        assert same(other.bound.state_dict(), own)
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="training saved by Fit.save"):
        run.load(tmp_path / "text")
    torch.save({"bound": 1}, tmp_path / "old")
    with pytest.raises(ValueError, match="format 1, got None"):
        run.load(tmp_path / "old")
    assert same(run.bound.state_dict(), before)


# Data.


class Items(Dataset):
    def __len__(self) -> int:
        return len(BITS)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return BITS[row], row  # with a label


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(BITS)


def test_tensor_array_dataset_and_loader_give_the_same_training() -> None:
    sources = {
        "tensor": BITS,
        "doubles": BITS.double(),
        "bools": BITS.bool(),
        "array": BITS.numpy(),
        "array of whole numbers": BITS.numpy().astype(np.int64),
        "read-only array": np.broadcast_to(BITS.numpy(), BITS.shape),
        "by site": {"x": BITS},
        "dataset": Items(),
        "tensor dataset": TensorDataset(BITS, torch.arange(len(BITS))),
        "loader": DataLoader(TensorDataset(BITS), 5),
        "stream": Stream(),
        "batches": list(BITS.split(5)),
    }
    found = {name: values(quiet(pcd(), rbm(), x, epochs=3, shuffle=False).run()) for name, x in sources.items()}
    assert all(records == found["tensor"] for records in found.values())
    assert len(found["tensor"]) == 15
    shuffled = [values(quiet(pcd(), rbm(), sources[name], epochs=3).run()) for name in ("tensor", "array", "dataset")]
    assert shuffled[0] == shuffled[1] == shuffled[2] != found["tensor"]


def test_an_epoch_takes_each_row_once_and_each_epoch_has_its_order() -> None:
    run = quiet(MeanEnergy(), MLPEnergy(1), torch.arange(23.0)[:, None], epochs=2)
    taken = [run.batches.take() for _ in range(10)]
    assert run.batches.take() is None
    orders = [torch.cat(taken[:5]).flatten(), torch.cat(taken[5:]).flatten()]
    assert all(torch.equal(order.sort().values, torch.arange(23.0)) for order in orders)
    assert not torch.equal(*orders)
    assert [len(batch) for batch in taken[:5]] == [5, 5, 5, 5, 3]


def test_bad_data_is_refused_and_the_message_says_where() -> None:
    bad = BITS.clone()
    bad[7, 2] = torch.nan
    for data, told in [
        (bad, r"finite data, got nan at row 7, coordinate \(2,\)"),
        (bad.numpy(), r"nan at row 7"),
        (BITS[:, :5], r"shape \(rows, 6\)"),
        (BITS[:0], "at least one row"),
        (BITS + 0.5, "boolean|in"),
        (np.array([["a"] * 6]), "real numbers, got <U1"),
        (BITS.to(torch.complex64), "real numbers, got torch.complex64"),
        ("data", "a Dataset or a loader, got str"),
        (3, "a Dataset or a loader, got int"),
        ((BITS, BITS[:, 0]), "a list of batches, a Dataset or a loader, got tuple"),  # with labels, most likely
        (iter([BITS]), "iterated again"),
    ]:
        with pytest.raises(ValueError, match=told):
            quiet(pcd(), rbm(), data, steps=1)
    with pytest.raises(ValueError, match="floating point data for a continuous energy, got torch.int64"):
        quiet(MeanEnergy(), MLPEnergy(2), torch.ones(3, 2, dtype=torch.int64), steps=1)
    with pytest.raises(ValueError, match="an empty one"):
        quiet(pcd(), rbm(), [], steps=1).run()
    with pytest.raises(ValueError, match=r"row 2, .*in batch 1 of epoch 0"):
        quiet(pcd(), rbm(), DataLoader(bad, 5), steps=3).run()
    joint = eb.as_energy(lambda x: x["a"] + x["b"], {"a": (), "b": ()})
    with pytest.raises(ValueError, match="the same|batch shape|as many|differ|leading axes"):
        as_batches(joint, {"a": torch.ones(3), "b": torch.ones(2)}, 5)
    with pytest.raises(ValueError, match="of site 'b', got inf at row 1"):
        as_batches(joint, {"a": torch.ones(2), "b": torch.tensor([1.0, torch.inf])}, 5)


def test_labels_that_a_score_model_could_take_are_not_dropped() -> None:
    model = NoisePrediction(TimeMLP((2,), (4,)), VP())
    labelled, loss = TensorDataset(REALS, torch.zeros(len(REALS)).long()), DiffusionScoreMatching(seed=0)
    for data in (labelled, DataLoader(labelled, 5)):
        with pytest.raises(ValueError, match="of 2, whose labels would be lost"):
            quiet(loss, model, data, steps=1).run()
    quiet(loss, model, TensorDataset(REALS), steps=1).run()


def test_settings_out_of_range_are_refused() -> None:
    for settings, told in [
        ({}, "either steps or epochs"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"steps": -1}, "steps >= 0"),
        ({"steps": 1, "batch_size": 0}, "batch_size >= 1"),
        ({"steps": 1, "clip": 0.0}, "clip > 0"),
        ({"steps": 1, "ema": 1.0}, r"decay in \[0, 1\)"),
        ({"steps": 1, "schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, "held-out data"),
        ({"steps": 1, "schedule": "cosine"}, "schedule as a factory .* got one of str"),
        ({"steps": 1, "schedule": lambda optimizer: 3}, "schedule as a factory .* got one of int"),
        ({"steps": 1, "monitor": RaiseK()}, "a Monitor, such as .* got RaiseK"),
    ]:
        with pytest.raises(ValueError, match=told):
            quiet(pcd(), rbm(), BITS, **settings)
    with pytest.raises(ValueError, match="a loss, such as"):
        quiet(pcd()(rbm()), rbm(), BITS, steps=1)
    others = quiet(pcd(), rbm(), BITS, steps=1, optimizer=lambda given: torch.optim.Adam(rbm().parameters()))
    with pytest.raises(ValueError, match="parameters that the loss depends on, got one of others"):
        others.run()


def test_without_parameters_fit_refuses_and_a_bound_loss_evaluates() -> None:
    energy = rbm().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        quiet(pcd(), energy, BITS, steps=1)
    assert math.isfinite(pcd()(energy)(BITS))


# What a step does.


def test_fit_is_the_plain_loop() -> None:
    energy, by_hand = rbm(), rbm()
    run = quiet(pcd(), energy, BITS, epochs=2, shuffle=False, optimizer=partial(torch.optim.Adam, lr=0.01))
    records = run.run()
    bound = pcd()(by_hand)
    optimizer = torch.optim.Adam(bound.parameters(), lr=0.01)
    for record, batch in zip(records, 2 * BITS.split(5), strict=True):
        optimizer.zero_grad()
        loss = bound(batch)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in bound.parameters()]).norm()
        optimizer.step()
        assert record.loss == loss.item()
        assert sum(record.terms.values()) == pytest.approx(record.loss, abs=1e-6)
        assert record.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert record.seconds > 0
    assert same(run.bound.state_dict(), bound.state_dict())


def test_the_average_has_nothing_of_the_weights_that_training_began_with() -> None:
    energy = rbm()
    run = quiet(pcd(), energy, BITS, steps=12, ema=0.7)
    seen = []
    for _ in run:
        seen.append({name: p.detach().double().clone() for name, p in energy.named_parameters()})
    powers = 0.7 ** torch.arange(11, -1, -1).double()
    shares = powers / powers.sum()
    expected = {name: sum(s * past[name] for s, past in zip(shares, seen, strict=True)) for name in seen[0]}
    own = copy.deepcopy(energy.state_dict())
    with run.ema.applied():
        for name, p in energy.named_parameters():
            torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(energy.W, own["W"])
    assert same(energy.state_dict(), own)
    with pytest.raises(RuntimeError), run.ema.applied():
        raise RuntimeError
    assert same(energy.state_dict(), own)


def test_a_longer_gradient_is_clipped_and_a_shorter_one_is_not() -> None:
    def gradient(clip: float | None) -> Tensor:
        energy = MLPEnergy(2, (8,), generator=generator(4))
        run = quiet(MeanEnergy(), energy, REALS, steps=1, clip=clip, optimizer=partial(torch.optim.SGD, lr=1.0))
        norms.append(run.run()[0].grad_norm)
        return torch.cat([p.grad.flatten() for p in energy.parameters()])

    norms: list[float] = []
    free = gradient(None)
    assert torch.equal(gradient(10 * norms[0]), free)
    torch.testing.assert_close(gradient(norms[0] / 4), free / 4, rtol=1e-5, atol=1e-7)
    assert norms[0] == norms[1] == norms[2]


def test_schedules_are_stepped() -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    rates = [r.learning_rate for r in quiet(pcd(), rbm(), BITS, steps=5, optimizer=sgd, schedule=step)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e6, threshold_mode="abs"
    )
    run = quiet(
        MeanEnergy(), MLPEnergy(2), REALS, steps=6, optimizer=sgd, schedule=plateau, validation=REALS, validate_every=2
    )
    assert [r.learning_rate for r in run] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_the_learning_rate_is_scaled_for_good() -> None:
    for name, schedule in schedules().items():
        rates = []
        for factor in (1.0, 0.5):
            run = quiet(pcd(), rbm(), BITS, steps=14, schedule=schedule, optimizer=partial(torch.optim.SGD, lr=0.1))
            first = [r.learning_rate for r in itertools.islice(run, 3)]
            run.scale_learning_rate(factor)
            rates.append([*first, *(r.learning_rate for r in run)])
        assert rates[1][:3] == rates[0][:3], name
        assert rates[1][3:] == pytest.approx([r / 2 for r in rates[0][3:]]), name


def test_validation_is_the_held_out_loss_and_moves_nothing() -> None:
    held_out = (torch.rand((11, 6), generator=generator(7)) < 0.6).float()
    plain = quiet(pcd(), rbm(), BITS, steps=12)
    expected = plain.run()
    run = quiet(pcd(), rbm(), BITS, steps=12, validation=DataLoader(held_out, 4, shuffle=True), validate_every=5)
    records = run.run()
    assert [r.step for r in records if r.validation is not None] == [4, 9]
    assert values([r._replace(validation=None) for r in records]) == values(expected)
    assert same(run.snapshot(), plain.snapshot())
    energy = Dropout()
    run = quiet(MeanEnergy(), energy, REALS, steps=4, validation=REALS[:13], validate_every=2, ema=0.5)
    found = run.run()[-1].validation
    with run.ema.applied():
        energy.eval()
        assert found == pytest.approx(energy(REALS[:13]).mean().item(), rel=1e-5)  # batches of 5, 5 and 3
    energy.train()
    assert run.validate() == found
    assert all(module.training for module in run.bound.modules())
    with pytest.raises(ValueError, match="validation="):
        plain.validate()


# The last good state.


def states_of(run: Fit, step: int, then: Callable[[], object]) -> list[dict[str, Any]]:
    """The states after each step until a loss is not finite; something is done after one step."""
    states = [run.snapshot()]

    def go() -> None:
        for record in run:
            states.append(run.snapshot())
            if record.step == step:
                then()

    with pytest.raises(NonFiniteLoss) as caught:
        go()
    states.append({"error": caught.value})
    return states


def test_a_loss_that_is_not_finite_leaves_the_last_good_state() -> None:
    loss = MeanEnergy()
    run = quiet(
        loss,
        MLPEnergy(2, generator=generator(4)),
        REALS,
        steps=50,
        ema=0.9,
        keep_every=4,
        schedule=schedules()["cosine"],
    )
    states = states_of(run, 9, lambda: setattr(loss, "factor", math.inf))
    error = states[-1]["error"]
    assert re.search(r"mean is -?inf.*back as they were after 8 of 10 steps", str(error))
    assert error.step == 10
    assert same(run.snapshot() | {"step": 8}, states[8])
    loss.factor = 1.0
    assert [record.step for record in run] == list(range(10, 50))  # and goes on


def test_chains_go_back_too() -> None:
    energy = rbm()
    run = quiet(pcd(), energy, BITS, steps=50, keep_every=3)
    states = states_of(run, 7, lambda: energy.b.data.fill_(torch.inf))
    assert "after 6 of 8 steps" in str(states[-1]["error"])
    assert same(run.snapshot() | {"step": 6}, states[6])


def test_a_state_whose_loss_is_not_finite_is_never_the_good_one() -> None:
    energy = MLPEnergy(2, generator=generator(4))
    run = quiet(MeanEnergy(), energy, REALS, steps=50, keep_every=3)
    huge = partial(torch.optim.SGD, lr=1e38)(list(energy.parameters()))
    states = states_of(run, 4, lambda: setattr(run, "optimizer", huge))  # update 6 is bad, and its state would be kept
    assert re.search("after 3 of [67] steps", str(states[-1]["error"]))
    good = {name.removeprefix("energy."): value for name, value in states[3]["bound"].items() if "energy." in name}
    assert same(energy.state_dict(), good)


def test_a_gradient_that_is_not_finite_is_no_update() -> None:
    class Root(eb.Energy):
        def __init__(self) -> None:
            super().__init__((2,))
            self.a = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a * x).square().sum(-1).sqrt()

    energy = Root()
    data = torch.cat([torch.ones(5, 2), torch.zeros(1, 2)])
    run = quiet(MeanEnergy(), energy, data, steps=50, shuffle=False, keep_every=1)
    with pytest.raises(NonFiniteLoss, match=r"gradient is not finite at step 1.*after 0 of 1 steps"):
        run.run()
    assert bool(torch.isfinite(energy.a).all())


def test_held_out_data_whose_loss_is_not_finite_leave_the_last_good_state_too() -> None:
    energy = MLPEnergy(2, generator=generator(4))
    before = copy.deepcopy(energy.state_dict())
    broken = partial(torch.optim.SGD, lr=1e38)  # by the first update, which the validation after it is the first to see
    run = quiet(MeanEnergy(), energy, REALS, steps=9, optimizer=broken, validation=REALS, validate_every=1)
    with pytest.raises(
        NonFiniteLoss, match=r"held-out data: the loss is not finite.*back as they were after 0 of 1 steps"
    ):
        run.run()
    assert same(dict(energy.state_dict()), dict(before))


def test_tensorboard_is_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, *entry: Any) -> None:
            written.append(entry)

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run = quiet(pcd(), rbm(), BITS, steps=4, validation=BITS, validate_every=3, monitor=Monitor([], every=4))
    with TensorBoard(tmp_path, every=2) as board:
        for record in run:
            board(record, **({"reconstruction": -4.5} if record.step == 1 else {}))
    names = {step: {name for name, _, at in written if at == step} for step in range(4)}
    assert names[0] - {"closed"} == {"loss", "grad_norm", "learning_rate", "terms/data", "terms/model"}
    assert names[1] == {"reconstruction"}
    assert ("reconstruction", -4.5, 1) in written
    assert "validation" in names[2]
    assert {"health/gap", "health/age"} <= names[3]
    assert written[-1][0] == "closed"


def test_the_bar_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(pcd(), rbm(), BITS, steps=2).run()
    assert capsys.readouterr().err == ""
    quiet(pcd(), rbm(), BITS, epochs=2, progress=True).run()
    assert "10/10" in capsys.readouterr().err


def test_an_average_by_hand() -> None:
    module = nn.Linear(1, 1)
    start = module.weight.item()
    ema = EMA(module, 0.75)
    for wanted in (start + 4.0, start + (0.75 * 4.0 + 8.0) / 1.75):
        with torch.no_grad():
            module.weight.add_(4.0)
        ema.update()
        assert ema.average["weight"].item() == pytest.approx(wanted)
        again = EMA(nn.Linear(1, 1), 0.75)
        again.load_state_dict(ema.state_dict())
        ema = EMA(module, 0.75)
        ema.load_state_dict(again.state_dict())  # goes on as if it had not been saved
