"""Records of steps for TensorBoard, an extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmppl.arguments import whole

if TYPE_CHECKING:
    from ebmppl.training.run import Step


class TensorBoard:
    """Writes records of steps as curves: ``for step in fit(...): board(step)``. A context, closed at its end.

    Curves of your own, such as a pseudo-likelihood of held-out data, go with a record: ``board(step, pseudo_likelihood=-80.3)``.

    Args:
        folder: of the curves, as ``tensorboard --logdir`` takes it.
        every: only steps whose number is a multiple of it; validations and checks are always written.

    Raises:
        ImportError: where TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, every: int = 1) -> None:
        self.every = whole("every", every, 1)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is an extra: pip install tensorboard") from error
        self.writer: Any = SummaryWriter(str(folder))

    def __call__(self, record: Step, **curves: float) -> None:
        """Write one record, and what else is given by name, which is always written."""
        values: dict[str, float] = {}
        if record.step % self.every == 0:
            values = {"loss": record.loss, "grad_norm": record.grad_norm, "learning_rate": record.learning_rate}
            values |= {f"terms/{name}": value for name, value in record.terms.items()}
        if record.validation is not None:
            values["validation"] = record.validation
        if record.health is not None:
            readings = record.health._asdict().items()
            values |= {f"health/{n}": v for n, v in readings if isinstance(v, float) and v == v}
        for name, value in {**values, **curves}.items():
            self.writer.add_scalar(name, value, record.step)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
