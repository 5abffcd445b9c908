"""Our own decode loop over the model in training: no copy of the weights, no server, exact against `generate`.

A prompt is prefilled once for all its samples, and finished rows leave the batch, so no token is computed twice and none
after the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from llmrl.errors import RolloutError
from llmrl.policy.forward import LogitHead, base_model, expanded, padded
from llmrl.rollout.engine import Context, Weights
from llmrl.types import Prompt, Rollout, Sampling

COMPACT_BELOW = 0.85  # share of live rows under which copying the cache is cheaper than computing finished rows


class TransformersEngine:
    """Samples from the policy's own module. Weights are shared with the trainer, so a sync only counts a version."""

    def __init__(self, context: Context, *, max_rows: int = 256):
        self.context = context
        self.max_rows = max_rows
        self.version = 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, num_samples: int, seeds: Sequence[int]
    ) -> list[list[Rollout]]:
        for prompt in prompts:
            if not 0 < len(prompt.ids) <= self.context.max_prompt_tokens:
                raise RolloutError(
                    f"prompt {prompt.id}: {len(prompt.ids)} tokens; expected 1 to "
                    f"{self.context.max_prompt_tokens} (data.max_prompt_tokens)."
                )
        out: list[list[Rollout]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        step = max(1, self.max_rows // num_samples)
        model = self.context.policy.model
        was_training = model.training
        model.eval()  # in training mode, a model that checkpoints its activations gets no cache
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            rows = self._decode([prompts[i].ids for i in chosen], sampling, num_samples, [seeds[i] for i in chosen])
            for place, i in enumerate(chosen):
                out[i] = rows[place * num_samples : (place + 1) * num_samples]
        model.train(was_training)
        return out

    def sync(self, policy: Weights, version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing to give back: the module is the trainer's."""

    @torch.no_grad()
    def _decode(
        self, contexts: list[tuple[int, ...]], sampling: Sampling, num_samples: int, seeds: list[int]
    ) -> list[Rollout]:
        base = base_model(self.context.policy.model)
        trunk, head = base.get_decoder(), LogitHead(base)
        device = next(trunk.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.precision == "bf16"):
            ids, mask = padded(contexts, device, left=True)
            prefilled = DynamicCache(config=trunk.config)
            hidden = trunk(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=prefilled,
                use_cache=True,
            ).last_hidden_state[:, -1]
            owners = torch.arange(len(contexts), device=device).repeat_interleave(num_samples)
            cache = expanded(prefilled, owners)
            del prefilled
            hidden, mask, positions = hidden[owners], mask[owners], mask.sum(1)[owners]
            noise = uniforms(seeds, num_samples, sampling.max_tokens).to(device)
            stops = torch.tensor(self.context.stop_ids, device=device)
            rows = torch.arange(len(owners), device=device)  # which rollout each live row of the batch is
            tokens = torch.full((len(owners), sampling.max_tokens), -1, dtype=torch.long, device=device)
            logprobs = torch.zeros(len(owners), sampling.max_tokens, device=device)
            done = torch.zeros(len(owners), dtype=torch.bool, device=device)
            tempered = torch.zeros(2, *logprobs.shape, device=device) if sampling.varies else None
            for t in range(sampling.max_tokens):
                logits, live, temperatures = head(hidden).float(), ~done, None
                if tempered is not None:
                    temperatures, entropies = sampling.per_token(logits)
                    tempered[:, rows[live], t] = torch.stack([temperatures, entropies])[:, live]
                token, logprob = sample(logits, sampling, noise[rows, t], temperatures)
                tokens[rows[live], t], logprobs[rows[live], t] = token[live], logprob[live]
                done = done | torch.isin(token, stops)
                alive = int((~done).sum())
                if alive == 0 or t + 1 == sampling.max_tokens:
                    break
                if alive < COMPACT_BELOW * len(rows):
                    keep = (~done).nonzero().squeeze(1)
                    cache = expanded(cache, keep)
                    rows, token, mask, positions, done = (
                        rows[keep],
                        token[keep],
                        mask[keep],
                        positions[keep],
                        done[keep],
                    )
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
                hidden = trunk(
                    input_ids=token[:, None],
                    attention_mask=mask,
                    position_ids=positions[:, None],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
                positions = positions + 1
        rollouts = self._rollouts(tokens.cpu(), logprobs.cpu())
        if tempered is None:
            return rollouts
        return [
            replace(r, temperatures=tuple(divisors[: len(r.ids)]), entropies=tuple(nats[: len(r.ids)]))
            for r, divisors, nats in zip(rollouts, *tempered.tolist(), strict=True)
        ]

    def _rollouts(self, tokens: Tensor, logprobs: Tensor) -> list[Rollout]:
        lengths = (tokens >= 0).sum(1).tolist()
        out = []
        for ids, numbers, length in zip(tokens.tolist(), logprobs.tolist(), lengths, strict=True):
            truncated = ids[length - 1] not in self.context.stop_ids
            out.append(Rollout(tuple(ids[:length]), "", tuple(numbers[:length]), truncated, self.version))
        return out


def uniforms(seeds: Sequence[int], num_samples: int, length: int) -> Tensor:
    """[len(seeds)·num_samples, length] float64 in [0,1): row (p, i) depends on seeds[p] and i alone."""
    rows = []
    for seed in seeds:
        for i in range(num_samples):
            digest = hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def sample(
    logits: Tensor, sampling: Sampling, noise: Tensor, temperatures: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(token [n], its log-probability [n]) by inverting the distribution function at noise [n]; greedy at temperature 0.

    The log-probability is that of the distribution sampled from; greedy reports the one at temperature 1.
    temperatures: [n], in place of the one of `sampling`.
    """
    if sampling.temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
    divisor = sampling.temperature if temperatures is None else temperatures[:, None]
    logits = truncations(sampling)(None, logits / divisor)
    log_distribution = logits.log_softmax(-1)
    cumulative = log_distribution.exp().cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(cumulative, (noise * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    token = token.clamp(max=logits.shape[-1] - 1)
    return token, log_distribution.gather(-1, token[:, None]).squeeze(-1)


def truncations(sampling: Sampling) -> LogitsProcessorList:
    """transformers' own top-k and top-p, only those that do anything."""
    steps = LogitsProcessorList()
    if sampling.top_k > 0:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return steps
