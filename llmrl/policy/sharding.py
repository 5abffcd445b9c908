"""What processes share of a policy, its gradient and its moments: nothing, or by PyTorch's fully_shard (FSDP2) all of it.

Every forward of a sharded module gathers its weights from all processes, a layer at a time. So all of them have to forward
equally often, whatever work each has; inside `whole` nothing is gathered, and each may do as it likes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llmrl.errors import TrainingError


class Replicated:
    """Weights that every process holds whole.

    spread: whether what is saved has to be put together by all processes.
    """

    spread = False

    def most(self, number: int) -> int:
        """The largest of all processes' numbers of forward passes, where they have to be equal: here each its own."""
        return number

    def whole(self) -> contextlib.AbstractContextManager:
        """Inside, this process has every weight, as it is now. All processes have to enter and to leave."""
        return contextlib.nullcontext()

    def near(self, part: nn.Module) -> contextlib.AbstractContextManager:
        """Inside, the weights of that part can be computed with. All processes have to enter."""
        return contextlib.nullcontext()

    def put(self, values: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """Write whole arrays, the same on all processes, into parameters."""
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(laid_out(value, parameter))

    def moments(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """All of what the optimizer remembers of a parameter: arrays, and numbers. All processes have to ask."""
        state = optimizer.state.get(parameter, {})
        return {key: full(value) if torch.is_tensor(value) else value for key, value in state.items()}

    def put_moment(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer, key: str, value: Tensor) -> None:
        """Have the optimizer remember that whole array or number."""
        optimizer.state[parameter][key] = laid_out(value, parameter) if value.dim() else value


class Spread(Replicated):
    """What is the same for all ways of spreading: every process has to make equally many passes."""

    spread = True

    entry: Callable[..., dict[str, Tensor]]  # what a pass goes in by

    def __init__(self, device: torch.device):
        self.device, self.inside = device, 0

    def most(self, number: int) -> int:
        if self.inside:
            return number
        found = torch.tensor([number], device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)


class Sharded(Spread):
    """A module whose parameters, gradients and moments are spread over all processes, by whole layers.

    Raises TrainingError where torch cannot do it or, afterwards, has not done it.
    """

    def __init__(self, module: nn.Module, layers: list[nn.Module], device: torch.device):
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise TrainingError(
                f"parallel: fsdp needs a later torch than {torch.__version__}: gradients that one process has and another has "
                "not would make it wait for ever. Install torch 2.13 or later, or set parallel=ddp."
            )
        super().__init__(device)
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        # the root's weights too are let go after a forward: a step may follow that no backward pass came before
        for part in (*layers, module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        module.set_reduce_scatter_unused_params(True)
        self.entry = module
        self.parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        left = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
        if left or len(self.parts) != len(layers) + 1:
            raise TrainingError(
                f"parallel: fsdp was asked for, but torch left {left[:1] or 'some layers'} whole on each process. "
                "Set parallel=ddp."
            )

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        self.inside += 1
        try:
            if self.inside == 1:
                for part in self.parts:
                    part.set_reshard_after_forward(False, recurse=False)
                    part.unshard()
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                for part in self.parts:
                    part.reshard()
                    part.set_reshard_after_forward(True, recurse=False)


def layers_of(module: nn.Module, names: list[str] | None) -> list[nn.Module]:
    """The parts of those class names, as transformers lists them of a model; TrainingError where there are none."""
    found = [part for part in module.modules() if type(part).__name__ in (names or ())]
    if not found:
        raise TrainingError(
            f"parallel: transformers does not say what the layers of this model are (its _no_split_modules is {names}). "
            "Set parallel=ddp."
        )
    return found


@torch.no_grad()
def full(weight: Tensor) -> Tensor:
    """All of a weight, its gradient or moment, without a graph. All processes have to ask."""
    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if (
        hasattr(weight, "ds_status") and weight.ds_status.name != "AVAILABLE"
    ):  # ZeRO-3: DeepSpeed keeps a part beside it
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


def shape_of(weight: Tensor) -> torch.Size:
    """That of all of a weight: a parameter under ZeRO-3 is empty between passes."""
    return getattr(weight, "ds_shape", weight.shape)


def spread(module: nn.Module) -> bool:
    """Whether some of its weights are."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in module.parameters())


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole array, the same on all processes, spread as `like` is, or on its device."""
    value = value.to(like.device)
    return (
        distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        if isinstance(like, DTensor)
        else value
    )
