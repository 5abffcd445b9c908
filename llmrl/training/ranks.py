"""The processes of a run, through accelerate: devices, collectives, and the refusal of silent fall-backs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.nn.parallel import DistributedDataParallel

from llmrl.errors import RecipeError, TrainingError, nearest
from llmrl.policy.model import Policy

TRAINED_BY = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


class Ranks:
    """What the loop needs of the other processes. With one process every call is the identity."""

    def __init__(
        self,
        trackers: Sequence[str] = (),
        folder: str | None = None,
        parallel: str = "auto",
        timeout: float = 1800.0,
    ):
        """parallel: as `Run.parallel` of a recipe. timeout: seconds that a process waits for the others."""
        usable = [kind.value for kind in get_available_trackers()]
        for name in trackers:
            if name not in usable:
                raise RecipeError(
                    f"tracking.trackers: {name!r} is not installed, or accelerate knows no such tracker.{nearest(name, usable)} "
                    f"Usable here: {', '.join(usable) or 'none'}. Install its package, or leave it out."
                )
        cpu = not torch.cuda.is_available()
        # accelerate's default for FSDP has transformers leave the weights of every process but the first empty
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        # first: on CPU accelerate otherwise settles for one process and says nothing
        PartialState(cpu=cpu, timeout=timedelta(seconds=timeout))
        # a value head has no gradient in a stage that does not ask for values; buffers never change, and sending them
        # at each forward would hang where ranks forward unequally often
        unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # a recipe's model.precision says it, for the engine too
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[unused],
        )
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        kind = self.accelerator.distributed_type
        if self.size != asked or (asked > 1 and kind == DistributedType.NO):
            raise TrainingError(
                f"{asked} processes were asked for, accelerate set up {self.size} ({kind}). Start with "
                "`llmrl train … --num-processes N`, or give accelerate a configuration for this machine."
            )
        self.parallel = chosen(parallel, self.accelerator)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, policy: Policy) -> None:
        """Put the policy on this process's device, so that gradients are summed over ranks."""
        self.place(policy)
        if self.parallel == "fsdp" or self.size == 1:
            return
        policy.wrapped = self.accelerator.prepare_model(policy.module)
        if not isinstance(policy.wrapped, DistributedDataParallel):
            raise TrainingError(
                f"parallel: ddp was asked for, accelerate made {type(policy.wrapped).__name__} of the model. Start with `llmrl "
                "train … --num-processes N`, or look at accelerate's configuration."
            )

    def place(self, policy: Policy) -> None:
        """Put a policy that is not trained on this process's device, its weights spread like those of the one that is."""
        policy.module.to(self.accelerator.device)
        if self.parallel != "fsdp":
            return
        sums = str([float(p.detach().sum()) for p in policy.module.parameters()])
        if len(set(self.gather(sums))) > 1:
            raise TrainingError(
                f"{policy.path}: the processes did not load the same weights. Let all of them read the same folder."
            )
        policy.shard()

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


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """What torch says when another process is gone or does not answer, as a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            f"another process of the run is gone, or did not answer within rank_timeout: {str(error).splitlines()[0]:.200}. What "
            "is done is kept: the same command goes on from the last checkpoint."
        ) from error


def chosen(asked: str, accelerator: Any) -> str:
    """'ddp' or 'fsdp': what the recipe asks for, or accelerate was told. TrainingError for what llmrl does not do."""
    kind = accelerator.distributed_type
    told = "fsdp" if kind == DistributedType.FSDP else "ddp"
    refused = None
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        refused = "FSDP 1. Set fsdp_version: 2 in it"
    elif kind == DistributedType.FSDP and isinstance(accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy):
        refused = (
            "weights that are kept on the CPU. Set fsdp_offload_params: false in it, or train adapters (model.lora)"
        )
    elif kind not in TRAINED_BY:
        refused = (
            f"{kind.value}. Set distributed_type: FSDP and fsdp_version: 2 in it, which spread what ZeRO-3 spreads"
        )
    elif (told, asked) == ("fsdp", "ddp"):
        refused = "FSDP, and the recipe for parallel=ddp. Leave one of the two out"
    if refused is not None:
        raise TrainingError(f"accelerate's configuration asks for {refused}.")
    wanted = told if asked == "auto" else asked
    return "ddp" if accelerator.num_processes == 1 else wanted  # nobody to share with


def _rows(arrays: dict[str, Tensor]) -> int:
    return len(arrays["group_ids"])


def _stacked(parts: list[Tensor]) -> Tensor:
    if parts[0].dim() < 2:
        return torch.cat(parts)
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])
