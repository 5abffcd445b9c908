"""The policy: a transformers model made ready for training, its reference, its weights for engines, its export."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmrl.data.render import stop_ids
from llmrl.errors import ModelError
from llmrl.policy.forward import LogitHead, PolicyModule, Rows, StoredStates, base_model
from llmrl.policy.sharding import Replicated, Spread, full, layers_of

SHARED_TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}  # largest |Δ log-probability| taken as rounding, not as a bug


class Policy:
    """One model, its tokenizer, and the one function that every pass goes through."""

    def __init__(self, module: PolicyModule, tokenizer: Any, path: str, precision: str = "fp32", shared: bool = True):
        self.module = module
        self.wrapped: Callable[..., dict[str, Tensor]] = module  # what accelerate or DeepSpeed made of it
        self.sharding: Replicated = Replicated()
        self.tokenizer = tokenizer
        self.path = path
        self.precision = precision
        self.shared = shared
        self.own_reference = False  # whether it is the reference with its adapters off: they began at zero
        self._verified = False
        self.passes = 0  # forward passes so far, one a micro-batch

    @property
    def model(self) -> Any:
        return self.module.model

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def statistics(
        self,
        rows: Rows,
        width: int,
        *,
        entropy: bool = False,
        values: bool = False,
        scores: bool = False,
        logprobs: bool = True,
        action_values: bool = False,
        old: StoredStates | None = None,
        ref: StoredStates | None = None,
        states: bool = False,
        perturbed: int | None = None,
    ) -> dict[str, Tensor]:
        """{'logprobs'?, 'entropy'?, 'values'?, 'scores'?, 'old_kl'?, 'ref_kl'?} of the rows' responses and, for
        action_values, those of ACTION_VALUES; [B,width] fp32 on the policy's device.

        old, ref: other policies' states of these rows, for old_kl = KL(old || this) and ref_kl = KL(this || ref) over the
        vocabulary. states: also 'states' [N,H], those before the counted tokens, to be stored. perturbed: the seed of the
        noise inside the model; None: none.

        Contexts that several rows share are forwarded once; the first time, the result is compared with the dense path,
        and on a difference the dense path is used from then on, with one warning.
        """
        shared = self.shared and self.module.shares(rows)
        if shared and not self._verified:
            shared = self.shared = self._agrees(rows)
            self._verified = True
        self.passes += 1
        with self.autocast():
            return self.wrapped(
                rows,
                width,
                entropy,
                values,
                shared,
                scores,
                logprobs,
                action_values,
                old=old,
                ref=ref,
                states=states,
                perturbed=perturbed,
            )

    def head(self) -> LogitHead:
        """What makes logits of the states: as it is now, whatever is trained or switched off afterwards."""
        return LogitHead(base_model(self.model)).frozen()

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapters are off: the policy is its own reference. Only where `own_reference`."""
        with self.model.disable_adapter():
            yield

    def shard(self, by: Callable[[PolicyModule, list[nn.Module], torch.device], Spread]) -> None:
        """Spread parameters, gradients and moments over all processes. by: what makes Sharded or Zero of the module, its
        decoder layers and device. Raises TrainingError.
        """
        self._verified, few = True, [True, True]  # now, while each process can forward on its own
        self.shared = self.shared and self._agrees(Rows([[1, 2, 3]] * 2 + [[4]], [[5, 6]] * 3, [few] * 3, [1.0] * 3))
        self.module.forward_at_once()
        layers = layers_of(self.module, base_model(self.model)._no_split_modules)
        self.sharding = by(self.module, layers, self.device)
        self.wrapped = self.sharding.entry
        self.idle()  # torch learns from a first forward of the whole that the layers are its parts

    def whole(self) -> contextlib.AbstractContextManager:
        """Inside, every weight is here, for forward passes that other processes do not make. All have to enter."""
        return self.sharding.whole()

    def idle(self) -> None:
        """A forward pass for the sake of processes that have one more."""
        with torch.no_grad():
            self.statistics(Rows([[0]], [[0]], [[True]], [1.0]), 1)

    def _agrees(self, rows: Rows) -> bool:
        some = rows.take(_extremes(rows))
        width = max(len(r) for r in some.responses)
        try:
            with torch.no_grad(), self.autocast():
                dense = self.module(some, width, shared=False)["logprobs"]
                difference = (self.module(some, width, shared=True)["logprobs"] - dense).abs().max().item()
        except Exception as error:  # noqa: BLE001 - an architecture may refuse the cache in any way it likes
            warnings.warn(
                f"sharing a group's prompt does not work with this model ({error!r}); every row is forwarded "
                "whole from now on.",
                stacklevel=3,
            )
            return False
        if difference <= SHARED_TOLERANCE[self.precision]:
            return True
        warnings.warn(
            f"sharing a group's prompt changes log-probabilities by up to {difference:.2g} with this model "
            f"(at most {SHARED_TOLERANCE[self.precision]:g} is rounding); every row is forwarded whole from now "
            "on.",
            stacklevel=3,
        )
        return False

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its transformers name: adapters merged in, lm_head.weight there even when it is tied.

        Weights that are not adapted are the model's own memory; the others are merged one at a time.
        """
        base = base_model(self.model)
        adapted = {
            f"{n}.weight": m for n, m in base.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_delta_weight")
        }
        seen = set()
        for name, weight in base.state_dict(keep_vars=True).items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            seen.add(plain)
            if plain in adapted:
                layer = adapted[plain]
                with self.sharding.near(layer):
                    merged = full(weight) + sum(full(layer.get_delta_weight(a)) for a in layer.active_adapters)
                yield plain, merged
            else:
                yield plain, full(weight)
        if "lm_head.weight" not in seen:
            yield "lm_head.weight", full(base.get_output_embeddings().weight)

    def trained_names(self) -> set[str]:
        """The names, of those of `named_weights`, whose weights training changes."""
        base = base_model(self.model)
        names = {
            f"{name.partition('.lora_')[0]}.weight" if ".lora_" in name else name.replace(".base_layer.", ".")
            for name, parameter in base.named_parameters()
            if parameter.requires_grad
        }
        head = base.get_output_embeddings()  # when it is tied, its weight has the embeddings' name above
        return names | {"lm_head.weight"} if head.weight.requires_grad else names

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def export(self, folder: Path, write: bool = True) -> None:
        """Write what `AutoModelForCausalLM` (or peft, for adapters) and `AutoTokenizer` load; own heads beside it.

        A trained reward model loads with `AutoModelForSequenceClassification`, too: its head is among the weights as
        `score.weight`. Adapters are for that merged in, below `merged`. write: False for a process that only gives its share of
        the weights; where they are spread all have to call.
        """
        if not (write or self.sharding.spread):
            return
        adapters, state = hasattr(self.model, "peft_config"), self._state()
        heads = {name: below(state, name) for name in ("score_head", "value_head", "action_value_head")}
        scores = any(
            bool(w.any()) for w in heads["score_head"].values()
        )  # at zero it belongs to a later stage of the run
        weights = dict(self.named_weights()) if scores else {}
        if not write:
            return
        if adapters or not scores:
            self.model.save_pretrained(folder, state_dict=below(state, "model") if self.sharding.spread else None)
            self.tokenizer.save_pretrained(folder)
        if scores:
            self._export_classifier(folder / "merged" if adapters else folder, weights, heads["score_head"]["weight"])
        for name, head in heads.items():
            if head and (name != "score_head" or scores):
                save_file(head, folder / f"{name}.safetensors")

    def _state(self) -> dict[str, Tensor]:
        """Every weight by its name in the module, those that share memory as one tensor."""
        named = self.module.state_dict(keep_vars=True)
        whole = {id(weight): full(weight).cpu() for weight in named.values()}
        return {name: whole[id(weight)] for name, weight in named.items()}

    def _export_classifier(self, folder: Path, weights: dict[str, Tensor], head: Tensor) -> None:
        from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

        base, tokenizer = base_model(self.model), copy.deepcopy(self.tokenizer)
        padding = padding_id(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
        tokenizer.save_pretrained(folder)
        if base.config.get_text_config().tie_word_embeddings:
            del weights["lm_head.weight"]
        base.save_pretrained(folder, state_dict=weights | {"score.weight": head})
        config = copy.deepcopy(base.config)
        config.num_labels, config.pad_token_id = 1, padding
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
        config.architectures = [kind.__name__] if kind else config.architectures
        config.save_pretrained(folder)


def below(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one part of a module, by their names in it."""
    return {n.removeprefix(f"{name}."): w for n, w in state.items() if n.startswith(f"{name}.")}


def padding_id(tokenizer: Any) -> int:
    """A token to pad with that ends no answer: transformers reads a sequence classifier before the padding, and would
    take the end of an answer for padding. ModelError without one."""
    others = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    stops = stop_ids(tokenizer)
    found = next((i for i in (tokenizer.pad_token_id, *others) if i is not None and i not in stops), None)
    if found is None:
        raise ModelError(
            "a reward model needs a padding token other than the token that ends an answer, and this tokenizer has no other "
            "special token. Save one with it: tokenizer.add_special_tokens({'pad_token': '<|pad|>'})."
        )
    return found


def _extremes(rows: Rows) -> list[int]:
    """At most eight rows: the longest and the shortest there is, each with others of its context, the longest of them."""
    size = [len(c) + len(r) for c, r in zip(rows.contexts, rows.responses, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -size[i])
    groups = (
        [i, *(j for j in order if j != i and rows.contexts[j] == rows.contexts[i])] for i in (order[0], order[-1])
    )
    return list(dict.fromkeys(i for group in groups for i in group[:4]))
