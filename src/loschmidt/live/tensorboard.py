"""Metrics for TensorBoard, an extra."""

import os
from numbers import Real

from ..errors import InvalidSetting
from ..files import not_written
from .metrics import EachStep, Record

_FLUSH_SECONDS = 5


class TensorBoard(EachStep):
    """Writes records as scalars that TensorBoard shows: forward/loss, back/loss and so on, over the step.

    A killed process loses the last 5 seconds at most; TensorBoard reads what is there.

    Args:
        folder: its log folder; each writer adds a file.
        every: only steps that this divides are written.

    Raises:
        InvalidSetting: the package tensorboard is missing.
        NotWritten: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, every: int = 1):
        super().__init__(every)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InvalidSetting(
                f"TensorBoard({str(folder)!r}) needs the package tensorboard, which cannot be imported: {error}.",
                "pip install 'loschmidt[tensorboard]'",
            ) from error
        try:
            self._writer = SummaryWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        except OSError as error:
            raise not_written(folder, error) from error

    def write(self, record: Record) -> None:
        """Write the numbers of a record, over its "step"."""
        prefix = f"{record['direction']}/" if "direction" in record else ""
        for name, value in record.items():
            value = value.item() if hasattr(value, "item") else value
            if name != "step" and isinstance(value, Real):
                self._writer.add_scalar(prefix + name, float(value), record.get("step"))

    def close(self) -> None:
        """Write what is left, and close."""
        self._writer.close()
