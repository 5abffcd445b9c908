"""What a stage must have for its algorithm to train on: refused before it trains, with the next move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrl import catalog
from llmrl.algorithm import Algorithm
from llmrl.batch import base_name, sources
from llmrl.composition import replays
from llmrl.data.prompts import PromptSet
from llmrl.errors import RecipeError
from llmrl.plan import required
from llmrl.recipe import StageConfig
from llmrl.scoring import Scorer


def refuse_spread(config: StageConfig, algorithm: Algorithm, parallel: str) -> None:
    """Refuse what cannot be done with weights, gradients or moments spread in that way. RecipeError."""
    rule, zero = algorithm.update, parallel.startswith("zero")
    if parallel != "ddp" and getattr(rule, "whole", False):
        raise RecipeError(
            f"stage {config.name}: {catalog.name_of(rule)} works on all parameters as one vector, and parallel={parallel} "
            "spreads them over processes. Set parallel=ddp, with adapters (model.lora) where memory is short."
        )
    if zero and getattr(rule, "writes", False):
        raise RecipeError(
            f"stage {config.name}: {catalog.name_of(rule)} puts parameters back to what they were, and under parallel={parallel} "
            "they are DeepSpeed's. Set parallel=fsdp or ddp."
        )
    if zero and config.training.train_only:
        raise RecipeError(
            f"stage {config.name}: training.train_only leaves parameters out of the optimizer, and DeepSpeed ({parallel}) takes "
            "them all. Set parallel=fsdp or ddp."
        )


def demand(config: StageConfig, algorithm: Algorithm, prompts: PromptSet, scorers: Sequence[Scorer]) -> None:
    """Refuse a stage whose data or scorers cannot give what its algorithm trains on. RecipeError."""
    wants = required(algorithm)
    if not scorers and sources(wants) & {"rewards", "token_rewards", "reward_parts"}:
        raise RecipeError(
            f"stage {config.name}: its algorithm trains on rewards and there are no scorers. Name some under scorers; "
            "`llmrl list scorers` shows what there is."
        )
    paired = any(name != base_name(name) for name in wants)
    if any(extra.source == "extra_data" for extra in algorithm.extra) and config.extra_data is None:
        raise RecipeError(
            f"stage {config.name}: its algorithm trains on demonstrations beside the rollouts, and there is no extra_data. "
            "Set it, such as extra_data: {source: demonstrations.jsonl}, or set algorithm.extra: []."
        )
    if any(extra.source == "stored" for extra in algorithm.extra) and not any(p.completions for p in prompts.prompts):
        raise RecipeError(
            f"stage {config.name}: its algorithm trains on stored answers to its prompts, and none of them has one. Bring data "
            "with a completion, or map its column: data.columns={completion: answer}."
        )
    if "block_ids" in sources(wants) and len(config.data.blocks) != len(scorers):
        raise RecipeError(
            f"stage {config.name}: found {len(config.data.blocks)} data.blocks and {len(scorers)} scorers; expected one scorer "
            "for each block, in the same order."
        )
    labels = {c.label for p in prompts.prompts for c in p.completions}
    if replays(config.rollout.engine) and not paired and "rejected" in labels:
        raise RecipeError(
            f"stage {config.name}: its data holds rejected answers, which this algorithm would train on like the chosen ones. "
            "Use an algorithm on pairs, such as dpo, or map the chosen column: data.columns={completion: chosen}."
        )


def within(config: Any, longest: int, limits: tuple[int, int]) -> tuple[int, int]:
    """(prompt tokens, answer tokens) that fit the model's positions. RecipeError when the data's longest prompt does not."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return limits
    if longest + limits[1] > positions:
        raise RecipeError(
            f"the longest prompt has {longest} tokens and an answer may have {limits[1]}, together more than the model's "
            f"{positions} positions. Lower data.max_prompt_tokens or max_tokens."
        )
    return min(limits[0], positions - limits[1]), limits[1]
