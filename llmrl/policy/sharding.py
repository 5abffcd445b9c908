"""Weights that are spread over processes (PyTorch's fully_shard, FSDP2), and how they are seen whole.

Every forward of a sharded module gathers its weights from all processes, a layer at a time. So all of them have to forward
equally often, whatever work each has; inside `whole` nothing is gathered, and each may do as it likes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llmrl.errors import TrainingError


class Replicated:
    """Weights that every process holds whole."""

    spread = False

    def most(self, number: int) -> int:
        """The largest of all processes' numbers of forward passes, where they have to be equal: here each its own."""
        return number

    def whole(self) -> contextlib.AbstractContextManager:
        """Inside, this process has every weight, as it is now. All processes have to enter and to leave."""
        return contextlib.nullcontext()


class Sharded(Replicated):
    """A module whose parameters, gradients and moments are spread over all processes, by whole layers.

    Raises TrainingError where torch cannot do it or, afterwards, has not done it.
    """

    spread = True

    def __init__(self, module: nn.Module, layers: list[nn.Module], device: torch.device):
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise TrainingError(
                f"parallel: fsdp needs a later torch than {torch.__version__}: gradients that one process has and another has "
                "not would make it wait for ever. Install torch 2.13 or later, or set parallel=ddp."
            )
        self.device, self.inside = device, 0
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        # the root's weights too are let go after a forward: a step may follow that no backward pass came before
        for part in (*layers, module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        module.set_reduce_scatter_unused_params(True)
        self.parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        left = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
        if left or len(self.parts) != len(layers) + 1:
            raise TrainingError(
                f"parallel: fsdp was asked for, but torch left {left[:1] or 'some layers'} whole on each process. "
                "Set parallel=ddp."
            )

    def most(self, number: int) -> int:
        if self.inside:
            return number
        found = torch.tensor([number], device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

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
            f"parallel: fsdp: transformers does not say what the layers of this model are (its _no_split_modules is {names}). "
            "Set parallel=ddp."
        )
    return found


def full(weight: Tensor) -> Tensor:
    """All of a weight, its gradient or moment. All processes have to ask."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def spread(module: nn.Module) -> bool:
    """Whether some of its weights are."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole array, the same on all processes, spread as `like` is, or on its device."""
    value = value.to(like.device)
    return (
        distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        if isinstance(like, DTensor)
        else value
    )
