from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from rich import get_console
from rich.table import Table

COLUMNS = {"Name": "part", "Type": "class", "Params": "parameters", "Mode": "mode"}


class PartSummary(ModelSummary):
    """Prints the model's parts with their parameters when training starts.

    Lightning's own table also has FLOPs, which are 0 without an example input; ``cgspn info`` counts them.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Prints the table, without parts that have no parameters, and the sums."""
        columns = dict(summary_data)
        table = Table(header_style="bold")
        for name in COLUMNS.values():
            table.add_column(name, justify="right" if name == "parameters" else "left")
        for row in zip(*(columns[name] for name in COLUMNS), strict=True):
            if row[2].strip() != "0":
                table.add_row(*row)
        console = get_console()
        console.print(table)
        console.print(
            f"{total_parameters:,} parameters, of which {trainable_parameters:,} train", highlight=False
        )
