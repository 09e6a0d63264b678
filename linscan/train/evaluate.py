"""Losses of a batch, and figures over the test data."""

from collections.abc import Callable, Iterable
from typing import Any

from linscan._arrays import Array, check_choice, namespace
from linscan.ops.loss import cross_entropy_vjp, mse_vjp

LOSSES = ("cross_entropy", "mse")


def loss_vjp(kind: str, y: Array, batch: dict[str, Any]) -> tuple[Array, Callable[[Any], Array]]:
    """The loss of the output `y` for a batch, and its pullback to `y`."""
    check_choice("fit", "loss", kind, LOSSES)
    rule, wanted = (cross_entropy_vjp, "labels") if kind == "cross_entropy" else (mse_vjp, "target")
    loss, back = rule(y, batch[wanted], batch.get("mask"))
    return loss, lambda dloss: back(dloss)[0]


def evaluate(model: Any, params: Any, batches: Iterable[dict[str, Any]], kind: str) -> dict[str, float]:
    """Mean loss over all that counts; for classes also the share that is right, and of rows all of whose labels are."""
    loss = counted = right = whole = rows = 0.0
    for batch in batches:
        options = {name: batch[name] for name in ("reset", "lengths") if name in batch}
        y, _ = model.apply(params, batch["u"], **options)
        wanted = batch["labels" if kind == "cross_entropy" else "target"]
        xp = namespace(y)
        mask = xp.broadcast_to(xp.asarray(batch.get("mask", True)), wanted.shape)
        count = float(mask.sum())
        loss += float(loss_vjp(kind, y, batch)[0]) * count
        counted += count
        if kind == "cross_entropy":
            hit = (y.argmax(-1) == wanted) | ~mask
            right += float((hit & mask).sum())
            whole += float(hit.reshape(len(hit), -1).all(-1).sum())
            rows += len(hit)
    figures = {"test_loss": loss / max(1.0, counted)}
    if kind == "cross_entropy":
        figures |= {"test_accuracy": right / max(1.0, counted), "test_rows": whole / max(1.0, rows)}
    return figures
