"""Our own decode loop over the model in training: no copy of the weights, no server, exact against `generate`.

A prompt is prefilled once for all its samples, and finished rows leave the batch, so no token is computed twice and none
after the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from llmrl.clock import span
from llmrl.errors import RolloutError
from llmrl.policy.decoding import CachedRows, Prefilled, SharedPrompts, can_share
from llmrl.policy.forward import LogitHead, base_model
from llmrl.rollout.draw import inverted, uniforms
from llmrl.rollout.engine import Context, Finished, Weights
from llmrl.types import Prompt, Rollout, Sampling

TOKENS_BETWEEN = 4  # after which the caller may look at its own work, though no answer has ended
COMPACT_BELOW = 0.97  # share of live rows under which copying the cache is cheaper than computing finished rows


class TransformersEngine:
    """Samples from the policy's own module. Weights are shared with the trainer, so a sync only counts a version."""

    def __init__(self, context: Context, *, max_rows: int = 256):
        self.context = context
        self.max_rows = max_rows
        self.version = 0
        self.shares: bool | None = None  # prompts with the rows that continue them; None until the first call

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
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
        with self.context.policy.whole():  # each process decodes as many steps as its answers are long
            for start in range(0, len(order), step):
                chosen = order[start : start + step]
                tell = finished and (lambda ended, chosen=chosen: finished({chosen[p]: rs for p, rs in ended.items()}))
                decoded = self._decode(
                    [prompts[i].ids for i in chosen], sampling, num_samples, [seeds[i] for i in chosen], tell
                )
                for place, i in enumerate(chosen):
                    out[i] = decoded[place]
        model.train(was_training)
        return out

    def sync(self, policy: Weights, version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing to give back: the module is the trainer's."""

    @torch.no_grad()
    def _decode(
        self,
        contexts: list[tuple[int, ...]],
        sampling: Sampling,
        num_samples: int,
        seeds: list[int],
        finished: Finished | None,
    ) -> dict[int, list[Rollout]]:
        """The rollouts of each context."""
        base = base_model(self.context.policy.model)
        trunk, head = base.get_decoder(), LogitHead(base)
        device = next(trunk.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.precision == "bf16"):
            if self.shares is None:
                longest = self.context.max_prompt_tokens + self.context.max_tokens
                self.shares = can_share(self.context.policy.model, longest, self.context.precision)
            with span("prefill"):
                prefilled = Prefilled(trunk, contexts, device)
            owners = torch.arange(len(contexts), device=device).repeat_interleave(num_samples)
            decoder = (SharedPrompts if self.shares else CachedRows)(trunk, prefilled, owners)
            hidden = prefilled.hidden[owners]
            del prefilled
            noise = uniforms(seeds, num_samples, sampling.max_tokens).to(device)
            stops = torch.tensor(self.context.stop_ids, device=device)
            rows = torch.arange(len(owners), device=device)  # which rollout each live row of the batch is
            tokens = torch.full((len(owners), sampling.max_tokens), -1, dtype=torch.long, device=device)
            logprobs = torch.zeros(len(owners), sampling.max_tokens, device=device)
            done = torch.zeros(len(owners), dtype=torch.bool, device=device)
            tempered = torch.zeros(2, *logprobs.shape, device=device) if sampling.varies else None
            going, before = set(range(len(contexts))), len(owners)
            out: dict[int, list[Rollout]] = {}

            def finish(places: Iterable[int]) -> dict[int, list[Rollout]]:
                ended = {}
                for place in places:
                    own = slice(place * num_samples, (place + 1) * num_samples)
                    ended[place] = self._rollouts(
                        tokens[own], logprobs[own], None if tempered is None else tempered[:, own]
                    )
                out.update(ended)
                return ended

            for t in range(sampling.max_tokens):
                with span("sample"):
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
                if finished is not None and (alive < before or t % TOKENS_BETWEEN == 0):
                    still = going if alive == before else set((rows[~done] // num_samples).tolist())
                    finished(finish(going - still))
                    going, before = still, alive
                if alive < COMPACT_BELOW * len(rows):
                    keep = (~done).nonzero().squeeze(1)
                    decoder.keep(keep)
                    rows, token, done = rows[keep], token[keep], done[keep]
                with span("decode"):
                    hidden = decoder.step(token)
            finish(going)
        return out

    def _rollouts(self, tokens: Tensor, logprobs: Tensor, tempered: Tensor | None) -> list[Rollout]:
        out = []
        for ids, numbers in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            length = ids.index(-1) if -1 in ids else len(ids)
            truncated = ids[length - 1] not in self.context.stop_ids
            out.append(Rollout(tuple(ids[:length]), "", tuple(numbers[:length]), truncated, self.version))
        if tempered is None:
            return out
        return [
            replace(r, temperatures=tuple(divisors[: len(r.ids)]), entropies=tuple(nats[: len(r.ids)]))
            for r, divisors, nats in zip(out, *tempered.tolist(), strict=True)
        ]


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
    token = inverted(log_distribution.exp(), noise)
    return token, log_distribution.gather(-1, token[:, None]).squeeze(-1)


def truncations(sampling: Sampling) -> LogitsProcessorList:
    """transformers' own top-k and top-p, only those that do anything."""
    steps = LogitsProcessorList()
    if sampling.top_k > 0:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return steps
