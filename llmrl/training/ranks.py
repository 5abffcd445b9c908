"""The processes of a run, through accelerate: devices, collectives, and the refusal of silent fall-backs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object
from torch import Tensor

from llmrl.errors import RecipeError, TrainingError, nearest


class Ranks:
    """What the loop needs of the other processes. With one process every call is the identity."""

    def __init__(self, trackers: Sequence[str] = (), folder: str | None = None):
        usable = [kind.value for kind in get_available_trackers()]
        for name in trackers:
            if name not in usable:
                raise RecipeError(
                    f"tracking.trackers: {name!r} is not installed, or accelerate knows no such tracker.{nearest(name, usable)} "
                    f"Usable here: {', '.join(usable) or 'none'}. Install its package, or leave it out."
                )
        cpu = not torch.cuda.is_available()
        PartialState(cpu=cpu)  # first: on CPU accelerate otherwise settles for one process and says nothing
        # a value head has no gradient in a stage that does not ask for values; buffers never change, and sending them
        # at each forward would hang where ranks forward unequally often
        unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        self.accelerator = Accelerator(
            cpu=cpu, log_with=list(trackers) or None, project_dir=folder, kwargs_handlers=[unused]
        )
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        kind = self.accelerator.distributed_type
        if self.size != asked or (asked > 1 and kind == DistributedType.NO):
            raise TrainingError(
                f"{asked} processes were asked for, accelerate set up {self.size} ({kind}). Start with "
                "`llmrl train … --num-processes N`, or give accelerate a configuration for this machine."
            )

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on this process's device, wrapped so that gradients are summed over ranks."""
        module.to(self.accelerator.device)
        return self.accelerator.prepare_model(module)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""
        return [value] if self.size == 1 else gather_object([value])

    def gather_arrays(self, arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], slice]:
        """(arrays with the rows of all ranks, this rank's rows among them). [B,T] arrays are padded to one T.

        A rank without rows adds nothing, whatever arrays it holds.
        """
        parts = self.gather({k: v.detach().cpu() for k, v in arrays.items()})
        if self.size == 1:
            return parts[0], slice(0, None)
        start = sum(_rows(p) for p in parts[: self.rank])
        filled = [p for p in parts if _rows(p)] or parts[:1]
        joined = {k: _stacked([p[k] for p in filled]) for k in filled[0]}
        return joined, slice(start, start + _rows(parts[self.rank]))

    def sums(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number summed over ranks; a rank that lacks one adds nothing."""
        total: dict[str, float] = {}
        for part in self.gather(numbers):
            for key, number in part.items():
                total[key] = total.get(key, 0.0) + number
        return total

    def maximum(self, number: float) -> float:
        return max(self.gather(number))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def _rows(arrays: dict[str, Tensor]) -> int:
    return len(arrays["group_ids"])


def _stacked(parts: list[Tensor]) -> Tensor:
    if parts[0].dim() < 2:
        return torch.cat(parts)
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])
