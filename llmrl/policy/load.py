"""From a folder, a hub id or a catalog name to a Policy ready to be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import nn

from llmrl import catalog, hub
from llmrl.config import Model
from llmrl.data.tokenizer import load_tokenizer
from llmrl.durable import draft_of
from llmrl.errors import LlmrlError, ModelError
from llmrl.options import bind
from llmrl.policy.forward import LogitHead, PolicyModule, base_model
from llmrl.policy.memory import recomputes
from llmrl.policy.model import Policy, padding_id


def load_policy(
    config: Model,
    folder: Path,
    *,
    seed: int,
    values: bool = False,
    scores: bool = False,
    action_values: bool = False,
    trained: str | None = None,
    tokens: int | None = None,
) -> Policy:
    """The policy a recipe's `model` section describes, weights in fp32, dropout off.

    folder: where a made model or an enlarged vocabulary is written. trained: an export of an earlier stage to load in
    place of `config.path`. Either may hold adapters, which are trained on. tokens: the most that a backward pass goes
    through at once, None where there is none. values, scores, action_values: with the heads
    that give them, scores by `config.verdict_tokens` where there are any. Raises ModelError.
    """
    from transformers import AutoModelForCausalLM

    try:
        start = pinned(config) if config.path else make(config, folder, seed)
        path = trained or start
        adapter = path if has_adapter(path) else None
        if adapter:
            path = start if trained and not has_adapter(start) else base_of(start)
        tokenizer = load_tokenizer(adapter or path)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=config.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if report["missing_keys"]:  # transformers draws them at random and goes on
            raise ValueError(f"it holds no weights for {', '.join(sorted(report['missing_keys'])[:3])}.")
    except LlmrlError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise anything
        raise unloadable(trained or config.path, error) from error
    if config.added_tokens and trained is None:
        path = add_tokens(model, tokenizer, config, folder, seed)
    if adapter or config.lora is not None:
        model = with_adapters(model, config, adapter, seed)
    recomputed = recomputes(model, config, tokens)
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    without_dropout(model, training=recomputed)
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
    module = PolicyModule(model, value_head, score_head, verdicts, action_value_head)
    policy = Policy(module, tokenizer, path, config.precision, config.shared_prompt == "auto")
    policy.own_reference = config.lora is not None and adapter is None
    return policy


def unloadable(path: str | None, error: Exception) -> ModelError:
    """What to say of a model that could not be loaded."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if "trust_remote_code" in str(error):  # what transformers advises to set
        said = "it is of a kind of its own, and code that comes with a model never runs here."
    return ModelError(
        f"model.path: {path!r} could not be loaded: {said} Expected a folder with config.json, "
        "safetensors that fit it and a tokenizer, or a hub id that can be reached."
    )


def linear_head(model: Any, stored: Path, bias: bool = True, outputs: int = 1) -> nn.Linear:
    """Some numbers of a hidden state: the head that an earlier run stored there, else one that begins at 0."""
    head = nn.Linear(base_model(model).config.get_text_config().hidden_size, outputs, bias=bias)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    if stored.exists():
        try:
            head.load_state_dict(load_file(stored))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise unloadable(str(stored), error) from error
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
    """The model's folder or hub id; with a revision the downloaded snapshot of it, so that engines read the same one.

    ModelError at once where the hub does not answer and the model is not stored here.
    """
    if Path(config.path).is_dir():
        return config.path
    if why := hub.missing(config.path, config.revision):
        raise ModelError(
            f"model.path: found no folder {config.path!r} in {Path.cwd()}, and as a hub id it cannot be had: {why}. Expected "
            "a folder with config.json, safetensors and tokenizer, or a hub id that can be reached. Copy the model here and "
            "name its folder, or connect; HF_ENDPOINT names a mirror."
        )
    if config.revision is None:
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
        draft = draft_of(target)
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
        if not (Path(stored) / "adapter_model.safetensors").is_file():  # peft would look for a pickle, or on the hub
            raise ModelError(
                f"{stored} has an adapter_config.json and no adapter_model.safetensors; adapters are read from safetensors "
                "only. Load them where you trust them and save them again with save_pretrained."
            )
        try:
            loaded = PeftModel.from_pretrained(model, stored, is_trainable=True)
        except Exception as error:  # as with a model's own folder
            raise unloadable(stored, error) from error
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
