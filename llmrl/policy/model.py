"""The policy: a transformers model made ready for training, its reference, its weights for engines, its export."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn

from llmrl import catalog
from llmrl.config import Model
from llmrl.data.render import stop_ids
from llmrl.errors import ModelError
from llmrl.options import bind
from llmrl.policy.forward import LogitHead, PolicyModule, Rows, StoredStates, base_model

SHARED_TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}  # largest |Δ log-probability| taken as rounding, not as a bug


class Policy:
    """One model, its tokenizer, and the one function that every pass goes through."""

    def __init__(self, module: PolicyModule, tokenizer: Any, path: str, precision: str = "fp32", shared: bool = True):
        self.module = module
        self.wrapped: nn.Module = module  # what accelerate made of it
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
        shared = self.shared and len({tuple(c) for c in rows.contexts}) < len(rows)
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

    def _agrees(self, rows: Rows) -> bool:
        some = _first_rows(rows, 8)
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
        """Every weight under its transformers name: adapters merged in, lm_head.weight there even when it is tied."""
        base = base_model(self.model)
        deltas = {}
        for name, layer in base.named_modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight"):
                for adapter in layer.active_adapters:
                    key = f"{name}.weight"
                    deltas[key] = deltas.get(key, 0) + layer.get_delta_weight(adapter)
        seen = set()
        for name, weight in base.state_dict().items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            seen.add(plain)
            yield plain, weight.detach() + deltas[plain] if plain in deltas else weight.detach()
        if "lm_head.weight" not in seen:
            yield "lm_head.weight", base.get_output_embeddings().weight.detach()

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def export(self, folder: Path) -> None:
        """Write what `AutoModelForCausalLM` (or peft, for adapters) and `AutoTokenizer` load; own heads beside it.

        A trained reward model loads with `AutoModelForSequenceClassification`, too: its head is among the weights as
        `score.weight`. Adapters are for that merged in, below `merged`.
        """
        head, adapters = self.module.score_head, hasattr(self.model, "peft_config")
        scores = head is not None and bool(head.weight.any())  # at zero the head belongs to a later stage of the run
        if adapters or not scores:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        if scores:
            self._export_classifier(folder / "merged" if adapters else folder)
            save_file(head.state_dict(), folder / "score_head.safetensors")
        for name in ("value_head", "action_value_head"):
            if getattr(self.module, name) is not None:
                save_file(getattr(self.module, name).state_dict(), folder / f"{name}.safetensors")

    def _export_classifier(self, folder: Path) -> None:
        from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

        base, tokenizer = base_model(self.model), copy.deepcopy(self.tokenizer)
        padding = padding_id(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
        tokenizer.save_pretrained(folder)
        weights = dict(self.named_weights())
        if base.config.get_text_config().tie_word_embeddings:
            del weights["lm_head.weight"]
        base.save_pretrained(folder, state_dict=weights | {"score.weight": self.module.score_head.weight.detach()})
        config = copy.deepcopy(base.config)
        config.num_labels, config.pad_token_id = 1, padding
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
        config.architectures = [kind.__name__] if kind else config.architectures
        config.save_pretrained(folder)


def load_policy(
    config: Model,
    folder: Path,
    *,
    seed: int,
    values: bool = False,
    scores: bool = False,
    action_values: bool = False,
    trained: str | None = None,
) -> Policy:
    """The policy a recipe's `model` section describes, weights in fp32, dropout off.

    folder: where a made model or an enlarged vocabulary is written. trained: an export of an earlier stage to load in
    place of `config.path`. Either may hold adapters, which are trained on. values, scores, action_values: with the heads
    that give them, scores by `config.verdict_tokens` where there are any. Raises ModelError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        start = pinned(config) if config.path else make(config, folder, seed)
        path = trained or start
        adapter = path if has_adapter(path) else None
        if adapter:
            path = start if trained and not has_adapter(start) else base_of(start)
        tokenizer = AutoTokenizer.from_pretrained(adapter or path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=config.attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path: {trained or config.path!r} could not be loaded: {str(error).splitlines()[0]} Expected a "
            "folder with config.json, safetensors and tokenizer, or a hub id that can be reached."
        ) from error
    if config.added_tokens and trained is None:
        path = add_tokens(model, tokenizer, config, folder, seed)
    if adapter or config.lora is not None:
        model = with_adapters(model, config, adapter, seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    without_dropout(model, training=config.gradient_checkpointing)
    stored = Path(adapter or path)
    value_head = linear_head(model, stored / "value_head.safetensors") if values else None
    vocabulary = base_model(model).config.get_text_config().vocab_size
    action_value_head = None
    if action_values:
        action_value_head = linear_head(model, stored / "action_value_head.safetensors", outputs=vocabulary)
    verdicts = verdict_ids(tokenizer, config.verdict_tokens) if scores and config.verdict_tokens else None
    score_head = None
    if scores and verdicts is None:
        padding_id(tokenizer)  # refused before any training, not at the export
        score_head = linear_head(model, stored / "score_head.safetensors", bias=False)
    check_head(model)
    # transformers gives a model that checkpoints its activations no cache, which sharing stands on
    shared = config.shared_prompt == "auto" and not config.gradient_checkpointing
    module = PolicyModule(model, value_head, score_head, verdicts, action_value_head)
    policy = Policy(module, tokenizer, path, config.precision, shared)
    policy.own_reference = config.lora is not None and adapter is None
    return policy


def linear_head(model: Any, stored: Path, bias: bool = True, outputs: int = 1) -> nn.Linear:
    """Some numbers of a hidden state: the head that an earlier run stored there, else one that begins at 0."""
    head = nn.Linear(base_model(model).config.get_text_config().hidden_size, outputs, bias=bias)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    if stored.exists():
        head.load_state_dict(load_file(stored))
    return head


def verdict_ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, int]:
    """The ids of the tokens for right and wrong. ModelError unless they are two different single tokens."""
    ids = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in tokens]
    if [len(one) for one in ids] != [1, 1] or ids[0] == ids[1]:
        raise ModelError(
            f"model.verdict_tokens: {list(tokens)} are the tokens {ids} to this tokenizer; expected two different single "
            "tokens, the one for right first. Choose others, or add them with model.added_tokens."
        )
    return ids[0][0], ids[1][0]


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


def has_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()


def base_of(path: str) -> str:
    """The model that a folder of adapters belongs to."""
    return json.loads((Path(path) / "adapter_config.json").read_text())["base_model_name_or_path"]


def add_tokens(model: Any, tokenizer: Any, config: Model, folder: Path, seed: int) -> str:
    """Give the tokenizer the recipe's tokens and the embeddings rows for them; the folder with both as they are now.

    New rows are drawn around the mean of the old ones, with their covariance. The tokens stay in decoded text.
    """
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in config.added_tokens])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        if config.lora is not None:
            raise ModelError(
                f"model.added_tokens: the embeddings have {model.get_input_embeddings().num_embeddings} rows and "
                f"{len(tokenizer)} tokens need one; adapters cannot train new rows. Leave model.lora out, or add the "
                "tokens in a run without it first."
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)

    def write(draft: Path) -> None:
        model.config.save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    return written_once(folder / "enlarged", write)


def pinned(config: Model) -> str:
    """The model's folder or hub id; with a revision the downloaded snapshot of it, so that engines read the same one."""
    if config.revision is None or Path(config.path).is_dir():
        return config.path
    from huggingface_hub import snapshot_download

    return snapshot_download(config.path, revision=config.revision)


def make(config: Model, folder: Path, seed: int) -> str:
    """Write the catalog model that `model.make` names, unless it is there already."""
    name, options = catalog.split_named(config.make)
    part = bind(catalog.get("models", name), {"seed": seed, **options})
    return written_once(folder / "made", lambda draft: part(str(draft)))


def written_once(target: Path, write: Callable[[Path], Any]) -> str:
    """A folder of the run that whichever process comes first writes, whole or not at all."""
    if not target.exists():
        draft = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        write(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(draft)
    return str(target)


def with_adapters(model: Any, config: Model, stored: str | None, seed: int) -> Any:
    """The model with the stored adapters, or with new ones that change nothing yet."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if stored is not None:
        loaded = PeftModel.from_pretrained(model, stored, is_trainable=True)
        rank = loaded.peft_config["default"].r
        if config.lora is not None and rank != config.lora.rank:
            raise ModelError(
                f"model.lora.rank is {config.lora.rank}; the adapters in {stored} have rank {rank}. Set it to that."
            )
        return loaded
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=config.lora.targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, lora)


def without_dropout(model: nn.Module, training: bool) -> None:
    """Dropout off for good: sampled and trained probabilities must be those of one function."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in list(vars(part).items()):  # what an architecture hands to the functional form
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    model.train(training)  # activation checkpointing works in training mode only


def check_head(model: Any) -> None:
    """Our head on the trunk's states must give the model's own logits, whatever the architecture adds to them."""
    base = base_model(model)
    ids = torch.arange(1, 6, device=next(base.parameters()).device)[None] % base.config.get_text_config().vocab_size
    with torch.no_grad():
        own = base(input_ids=ids, use_cache=False).logits.float()
        ours = LogitHead(base)(base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, ours, atol=1e-4, rtol=1e-4):
        raise ModelError(
            f"{type(base).__name__}: its logits are not its head applied to its decoder's states (difference "
            f"{(own - ours).abs().max():.3g}). Its log-probabilities would be wrong, so it is refused."
        )


def _first_rows(rows: Rows, count: int) -> Rows:
    return replace(
        rows,
        contexts=rows.contexts[:count],
        responses=rows.responses[:count],
        masks=rows.masks[:count],
        temperatures=rows.temperatures[:count],
        keys=rows.keys and rows.keys[:count],
    )
