"""A trained reward model as a scorer, in this process or behind a URL."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from llmrl.limits import limits
from llmrl.types import Group, Prompt, Rollout, Score
from reward_models.posted import posted
from reward_models.rendered import rendered

Tokens = tuple[int, ...]
ANSWER, ANSWER_A_ROW = 1 << 20, 1 << 12  # bytes of a service's answer: its rewards, and what else it may say of each


@limits(seconds=3600, memory_gb=None, workers=1, preload=("torch", "transformers", "httpx"))
def reward_model(
    groups: list[Group],
    *,
    path: str | None = None,
    url: str | None = None,
    batch_tokens: int = 16384,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    timeout: float = 120.0,
) -> list[list[Score]]:
    """The scalar that a Bradley-Terry reward model gives a response (arXiv:2203.02155).

    path: folder or hub id of a sequence classifier with one output, such as the `final` of a `bradley_terry` run
    (`final/merged` of one with adapters). It is loaded once and reads prompt and response by its own chat template, at
    most `batch_tokens` tokens at once. device: auto takes a GPU where there is one.
    url: a service in OpenRLHF's protocol instead: {"query": [prompt and response, ...], "prompts": [...]} is answered by
    {"rewards": [...]} within `timeout` seconds, in at most 1 MiB and 4 KiB a row;
    `path` then names the tokenizer that writes conversations.
    A response that is too long for the model is an error of its own. Raises ValueError for a model or an answer of the
    service that is not of this form, TimeoutError for a late one, httpx's errors when it cannot be reached.
    """
    rows = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    if url is not None:
        found = iter(asked(url, rows, path, timeout))
    elif path is not None:
        found = iter(judged(rows, path, batch_tokens, device, precision))
    else:
        raise ValueError(
            "neither path nor url is set; expected the folder of a reward model or the address of a service"
        )
    return [[next(found) for _ in group.rollouts] for group in groups]


def judged(
    rows: Sequence[tuple[Prompt, Rollout]], path: str, batch_tokens: int, device: str, precision: str
) -> list[Score]:
    """One Score a row, by the model itself."""
    import torch

    model, tokenizer = classifier(path, device, precision)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    scores: list[Score | None] = [None] * len(rows)
    ids: dict[int, Tokens] = {}
    for place, (prompt, rollout) in enumerate(rows):
        try:
            context, response = rendered(prompt, rollout.text, tokenizer, longest)
            ids[place] = context + response
        except Exception as error:  # noqa: BLE001 - a template raises what it likes; the other rows are judged
            scores[place] = Score(None, error=f"{type(error).__name__}: {error}")
    padding = model.config.get_text_config().pad_token_id
    # transformers' classifiers take one row at a time where no padding is set
    for batch in batches(ids, batch_tokens if padding is not None else 1):
        width = max(len(ids[place]) for place in batch)
        padded = [[*ids[place], *[padding] * (width - len(ids[place]))] for place in batch]
        mask = [[1] * len(ids[place]) + [0] * (width - len(ids[place])) for place in batch]
        with torch.inference_mode():
            inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
            numbers = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits[:, 0]
        for place, number in zip(batch, numbers.float().tolist(), strict=True):
            scores[place] = Score(number, evidence={"model": path[-200:], "tokens": len(ids[place])})
    return scores


def batches(ids: dict[int, Tokens], budget: int) -> Iterator[list[int]]:
    """Places of like length together, at most `budget` tokens with padding; a longer one stands alone."""
    batch: list[int] = []
    for place in sorted(ids, key=lambda i: len(ids[i])):
        if batch and (len(batch) + 1) * len(ids[place]) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@functools.cache
def classifier(path: str, device: str, precision: str) -> tuple[Any, Any]:
    """(model, tokenizer), loaded once a process. ValueError unless it has one output."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    outputs = AutoConfig.from_pretrained(path, trust_remote_code=False).num_labels
    if outputs != 1:
        raise ValueError(f"{path} has {outputs} outputs; expected a sequence classifier with one, a reward model")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, report = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{path} holds no weights for {missing}; expected a trained reward model")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return model.eval().to(chosen), tokenizer_of(path)


@functools.cache
def tokenizer_of(path: str) -> Any:
    from llmrl.data.tokenizer import load_tokenizer

    return load_tokenizer(path)


def asked(url: str, rows: Sequence[tuple[Prompt, Rollout]], path: str | None, timeout: float) -> list[Score]:
    """One Score a row, by the service."""
    texts = [written(prompt, rollout.text, path) for prompt, rollout in rows]
    body = {"query": [prompt + response for prompt, response in texts], "prompts": [prompt for prompt, _ in texts]}
    answer = posted(url, body, seconds=timeout, largest=ANSWER + ANSWER_A_ROW * len(rows))
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list) or len(rewards) != len(rows):
        raise ValueError(f"{url} answered {str(answer)[:200]!r}; expected {{'rewards': a list of {len(rows)} numbers}}")
    return [Score(number, evidence={"model": url[-200:]}) for number in rewards]


def written(prompt: Prompt, text: str, path: str | None) -> tuple[str, str]:
    """(prompt, response) as the text that a service's reward model reads."""
    if path is not None:
        context, response = rendered(prompt, text, tokenizer_of(path))
        return tokenizer_of(path).decode(context), tokenizer_of(path).decode(response)
    if prompt.messages is not None:
        raise ValueError("the prompt is a conversation; name the reward model in `path`, whose chat template writes it")
    return prompt.text or "", text.encode(errors="replace").decode()
