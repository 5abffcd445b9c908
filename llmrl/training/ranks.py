"""The processes of a run, through accelerate: devices, collectives, and the refusal of silent fall-backs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmrl.errors import RecipeError, TrainingError, nearest
from llmrl.policy.model import Policy
from llmrl.policy.sharding import Sharded
from llmrl.policy.zero import Zero, package
from llmrl.training.configuration import chosen, demand_all, demand_possible, told, zero_options
from llmrl.training.steps import Steps


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
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"  # and its default for DeepSpeed those of every process
        demand_possible()
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
        demand_all(self.size, self.accelerator.distributed_type)
        kind, plugin = told(self.accelerator)
        self.parallel = chosen(parallel, kind, plugin, self.size)
        if self.parallel.startswith("zero"):
            package()  # refused before anything loads
        self.options = zero_options(plugin) if kind == DistributedType.DEEPSPEED else {}
        if self.options.get("offload_optimizer") and self.size == 1:
            raise TrainingError(
                "accelerate's configuration asks one process to keep its moments on the CPU; llmrl has DeepSpeed do it for two "
                "or more. Set offload_optimizer_device: none, or train adapters (model.lora)."
            )

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, policy: Policy) -> None:
        """Put the policy on this process's device, so that gradients are summed over ranks."""
        self.place(policy, trained=True)
        if self.parallel != "ddp" or self.size == 1:
            return
        policy.wrapped = self.accelerator.prepare_model(policy.module)
        if not isinstance(policy.wrapped, DistributedDataParallel):
            raise TrainingError(
                f"parallel: ddp was asked for, accelerate made {type(policy.wrapped).__name__} of the model. Start with `llmrl "
                "train … --num-processes N`, or look at accelerate's configuration."
            )

    def place(self, policy: Policy, trained: bool = False) -> None:
        """Put a policy, by default one that is not trained, on this process's device, its weights spread as asked."""
        policy.module.to(self.accelerator.device)
        if self.parallel == "ddp" or (self.parallel in ("zero1", "zero2") and not trained):
            return
        sums = str([float(p.detach().sum()) for p in policy.module.parameters()])
        if len(set(self.gather(sums))) > 1:
            raise TrainingError(
                f"{policy.path}: the processes did not load the same weights. Let all of them read the same folder."
            )
        if self.parallel == "fsdp":
            policy.shard(Sharded)
            return
        half, stage = policy.precision == "bf16", int(self.parallel[-1])
        policy.shard(partial(Zero, stage=stage, options=self.options, half=half))
        if not trained:
            policy.sharding.start(None)

    def steps(
        self, policy: Policy, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float
    ) -> Steps | Zero:
        """What makes the steps of that optimizer, which moves the parameters. max_norm: gradients are clipped to."""
        if isinstance(policy.sharding, Zero):
            return policy.sharding.start(optimizer, max_norm)
        return Steps(policy, optimizer, parameters, max_norm)

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


def _rows(arrays: dict[str, Tensor]) -> int:
    return len(arrays["group_ids"])


def _stacked(parts: list[Tensor]) -> Tensor:
    if parts[0].dim() < 2:
        return torch.cat(parts)
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])
