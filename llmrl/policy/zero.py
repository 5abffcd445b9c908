"""Weights, gradients and moments that DeepSpeed spreads over processes (ZeRO), behind what `llmrl.policy.sharding` asks for.

Stage 1 spreads the moments, 2 also what is left of a gradient, 3 the weights, too. DeepSpeed wraps model and optimizer
together, so there is an engine for each stage of a run, and steps are the engine's. Under ZeRO-3 all processes have to call
the same modules in the same order. So what stands around the decoder layers is gathered with the whole, for all of a pass,
and the heads are called past DeepSpeed's hooks: as often as a process has rows for them.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.clock import span
from llmrl.errors import TrainingError
from llmrl.policy.forward import base_model
from llmrl.policy.sharding import Spread, shape_of

LARGEST_BUCKET = 100_000_000  # elements of gradient summed at once, at most; DeepSpeed holds a buffer of that size
# what DeepSpeed gathers is let go at once and nothing is fetched ahead: what is where never depends on the pass before
AT_ONCE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
}
READING = ("logprobs", "entropy", "action_values", "old_kl", "ref_kl")  # what the output layer has a part in


def package() -> Any:
    """deepspeed. TrainingError where it is not installed."""
    try:
        import deepspeed
    except ImportError as error:
        raise TrainingError(
            f"parallel: zero1 to zero3 need DeepSpeed, which cannot be imported ({error}). Install it: pip install "
            "'llmrl[deepspeed]', or set parallel=fsdp."
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of functions that it calls
    return deepspeed


class Root(nn.Module):
    """What DeepSpeed takes for the model: the policy's module with one tensor for an answer, [K,B,width].

    One, because DeepSpeed counts them. Parameters that a pass does not need are in its graph all the same, so that every
    process has a gradient of each of them. names: of the answer's K columns.
    """

    def __init__(self, module: nn.Module, half: bool):
        super().__init__()
        self.module, self.half, self.names = module, half, ()

    def forward(self, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        device = next(self.module.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):  # DeepSpeed switches one around it off
            out = self.module.forward(*inputs, **options)
        states = out.pop("states", None)
        self.names = tuple(out)
        unused = [p.sum() for p in self._unused(options) if p.requires_grad and torch.is_grad_enabled()]
        numbers = torch.stack(list(out.values()))
        return (numbers + 0.0 * torch.stack(unused).sum() if unused else numbers), states

    def _unused(self, options: dict[str, Any]) -> list[nn.Parameter]:
        module, names = self.module, self.names
        used = {
            base_model(module.model).get_output_embeddings(): any(name in READING for name in names)
            or module.verdicts is not None,
            module.value_head: "values" in names,
            module.score_head: "scores" in names,
            module.action_value_head: "action_values" in names,
            module.noise: options.get("perturbed") is not None,
        }
        return [p for part, needed in used.items() if part is not None and not needed for p in part.parameters()]


class Zero(Spread):
    """A module under DeepSpeed's ZeRO of that stage. `start` has to come before the first pass.

    layers: its decoder layers. options: DeepSpeed's zero_optimization section, beyond the stage. half: forward in bf16.
    """

    forgets = False

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[nn.Module],
        device: torch.device,
        *,
        stage: int,
        options: dict[str, Any],
        half: bool,
    ):
        super().__init__(device)
        self.package, self.stage, self.options = package(), stage, options
        self.root, self.engine = Root(module, half), None
        self.layers, self.entry = list(layers), self
        self.begun = False  # a gradient that no step was made of yet

    def start(self, optimizer: torch.optim.Optimizer | None, max_norm: float = 0.0) -> Zero:
        """Let the engine work with that optimizer from now on; None: nothing is trained. max_norm: gradients are clipped to.

        Raises TrainingError where DeepSpeed has made something else of it.
        """
        if self.engine is not None:
            self.engine.destroy()
        if self.stage == 3 and self.engine is None:
            self._surround()
        self.engine = self.package.initialize(
            model=self.root, optimizer=optimizer, config=self._config(max_norm), dist_init_required=False
        )[0]
        found = self.engine.zero_optimization_stage()
        if found != self.stage or (optimizer is not None and self.engine.optimizer is optimizer):
            raise TrainingError(f"parallel: zero{self.stage} was asked for, DeepSpeed set up stage {int(found)}.")
        return self

    def __call__(self, *inputs: Any, **options: Any) -> dict[str, Tensor]:
        """What the module gives."""
        with torch.autocast(self.device.type, enabled=False):
            # inside `whole` past the root's own hooks, which would wait for the other processes
            forward = self.root.forward if self.inside or self.engine is None else self.engine
            numbers, states = forward(*inputs, **options)
        out = dict(zip(self.root.names, numbers.unbind(0), strict=True))
        return out if states is None else out | {"states": states}

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        self.inside += 1
        try:
            if self.inside == 1 and self.stage == 3 and self.engine is not None:
                from deepspeed.runtime.zero import unwrap_model_for_generation

                with unwrap_model_for_generation(self.engine):
                    yield
            else:
                yield
        finally:
            self.inside -= 1

    def near(self, part: nn.Module) -> contextlib.AbstractContextManager:
        away = [p for p in part.parameters() if hasattr(p, "ds_status") and p.ds_status.name != "AVAILABLE"]
        return self.package.zero.GatheredParameters(away) if away else contextlib.nullcontext()

    @contextlib.contextmanager
    def sharing(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.begun = True
        self.engine.backward(loss)

    def step(self) -> float:
        with span("optimizer"):
            self.engine.step()
        self.begun = False
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else float("inf")

    def zero(self) -> None:
        """Nothing after a step, which has forgotten the gradient. TrainingError before one: DeepSpeed has spread it already."""
        if self.begun:
            raise TrainingError(
                "a gradient was to be forgotten before a step was made of it, which DeepSpeed cannot do. Take another "
                "algorithm.update, or set parallel=fsdp."
            )

    @torch.no_grad()
    def put(self, values: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, value in values:
            if hasattr(parameter, "ds_id"):
                with self.package.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)
            else:
                parameter.copy_(value)
        self.engine.optimizer.refresh_fp32_params()

    def moments(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link(optimizer)
        state = next(iter(optimizer.state.values()), {})  # of this process's share of a group; all are of one age
        return {
            key: safe_get_full_optimizer_state(parameter, key) if value.dim() else value for key, value in state.items()
        }

    @torch.no_grad()
    def put_moment(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        inner = self.engine.optimizer
        shares = inner.fp32_partitioned_groups_flat if self.stage == 3 else inner.single_partition_of_fp32_groups
        for share in shares:
            state = optimizer.state[share]
            if not value.dim():
                state[key] = value.clone()
            elif key not in state:
                state[key] = torch.zeros_like(share)
        if value.dim():
            self._link(optimizer)
            safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _link(self, optimizer: torch.optim.Optimizer) -> None:
        """Have DeepSpeed find the moments of every parameter; after a first step it looks for those of the first group."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self.stage < 3 and optimizer.state:
            inner = self.engine.optimizer
            for group, share in zip(inner.bit16_groups, inner.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(group, share, optimizer.state)

    def _surround(self) -> None:
        """Have what stands around the decoder layers gathered with the root. TrainingError where the output layer is not one
        matrix: parts of it would be called as often as a process has rows.
        """
        base = self.root.module
        head = base_model(base.model).get_output_embeddings()
        if any(head.children()):
            raise TrainingError(
                f"parallel: zero3 cannot work with an output layer of parts ({type(head).__name__}), such as one with adapters. "
                "Leave it out of model.lora, or set parallel=fsdp or zero2."
            )
        inside = {id(p) for layer in self.layers for p in layer.parameters()}
        for parameter in base.parameters():
            if id(parameter) not in inside:
                self.package.zero.register_external_parameter(self.root, parameter)

    def _config(self, max_norm: float) -> dict[str, Any]:
        trained = sum(shape_of(p).numel() for p in self.root.parameters() if p.requires_grad)
        bucket = {"reduce_bucket_size": max(1, min(LARGEST_BUCKET, trained))}
        return {
            "train_micro_batch_size_per_gpu": 1,  # what accumulates is said at each pass, and summed, not averaged
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_norm,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": bucket | self.options | AT_ONCE | {"stage": self.stage},
        }
