"""Everything that a stage of a recipe needs, built from the recipe: policy, reference, data, engine, scorers, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmrl import catalog
from llmrl.algorithm import Algorithm, passes, required
from llmrl.algorithm import build_stage as build_algorithm
from llmrl.batch import base_name, sources
from llmrl.config import Data, Evaluation, Named, Training
from llmrl.data.prompts import PromptSet, load
from llmrl.data.render import render, stop_ids
from llmrl.errors import RecipeError
from llmrl.evaluation import Benchmark
from llmrl.options import check_options
from llmrl.policy.forward import base_model
from llmrl.policy.model import Policy, load_policy
from llmrl.pool import Pool
from llmrl.recipe import Recipe, StageConfig
from llmrl.recipe_tree import Tree, overlay
from llmrl.rollout.engine import Context, Engine
from llmrl.scoring import Scorer, distinct, from_function, make_scorers
from llmrl.training.ranks import Ranks
from llmrl.training.update import Settings, Updater
from llmrl.types import Prompt, Rollout, Sampling

# mean |Δ log-probability| between engine and trainer beyond which they do not hold the same weights
LOGPROB_GAP = {"fp32": 0.02, "bf16": 0.2}
SAMPLED = ("temperature", "top_p", "top_k", "max_tokens")  # keys of an evaluation that win over a benchmark's


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a stage. Without scorers it is the objective itself, on stored answers."""

    config: Evaluation
    prompts: PromptSet
    scorers: list[Scorer]
    sampling: Sampling
    num_samples: int


@dataclass
class StageRun:
    """A stage, ready to run.

    memory: the state of the condition part, plain data, also carried through stages without one. version: of the
    engine's weights. feedback_cut: conditions shortened so far because the prompt would have been too long.
    """

    config: StageConfig
    index: int
    algorithm: Algorithm
    prompts: PromptSet
    scorers: list[Scorer]
    engine: Engine
    sampling: Sampling
    measurements: dict[str, Measurement]
    evaluator: Engine | None
    updater: Updater
    reference: Policy | None
    pool: Pool
    steps: int
    memory: Any = None
    version: int = 0
    feedback_cut: int = 0

    @property
    def plan(self) -> set[str]:
        """Names of the passes that run."""
        return {p.name for p in passes(self.algorithm)}

    @property
    def wants(self) -> set[str]:
        """The arrays that some part asks for, derived ones followed to what they are made of."""
        return sources(required(self.algorithm))

    @property
    def paired(self) -> bool:
        """Whether some part looks at rows through pairs."""
        return any(name != base_name(name) for name in required(self.algorithm))

    def render(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with their tokens; those under a new condition are rendered, the condition cut until they fit."""
        tokenizer, limit = self.updater.policy.tokenizer, self.engine.context.max_prompt_tokens
        rendered = [p if p.ids else fitted(p, tokenizer, limit) for p in prompts]
        self.feedback_cut += sum(p.feedback != r.feedback for p, r in zip(prompts, rendered, strict=True))
        return rendered

    def decoded(self, rollout: Rollout) -> Rollout:
        """The rollout with its text, which engines leave empty."""
        if rollout.text:
            return rollout
        return replace(rollout, text=self.decode(rollout.ids))

    def decode(self, ids: Sequence[int]) -> str:
        return self.updater.policy.tokenizer.decode(list(ids), skip_special_tokens=True)

    def close(self) -> None:
        self.engine.close()
        if self.evaluator is not None and self.evaluator is not self.engine:
            self.evaluator.close()


def first_policy(recipe: Recipe, folder: Path, trained: str | None = None) -> Policy:
    """The policy a run starts from, with the heads that its stages ask for."""
    wanted = {name for stage in recipe.stages for name in sources(required(build_algorithm(stage)))}
    return load_policy(
        recipe.run.model,
        folder,
        seed=recipe.run.seed,
        values="values" in wanted,
        scores="scores" in wanted,
        trained=trained,
    )


def build_stage(
    recipe: Recipe,
    index: int,
    policy: Policy,
    ranks: Ranks,
    folder: Path,
    trained: str | None,
    pool: Pool,
    memory: Any = None,
    functions: Sequence[Callable] = (),
) -> StageRun:
    """Load what stage `index` needs. pool: the processes that its scorers run in.

    trained: the export of the stage before, this stage's starting point; None: the model. memory: the condition part's
    state at the end of that stage. functions: scorers that replace the recipe's.
    """
    config, seed = recipe.stages[index], recipe.run.seed
    algorithm = build_algorithm(config)
    prompts = load(config.data, policy.tokenizer, seed=seed, answers=replays(config.rollout.engine))

    scorers = distinct([from_function(f) for f in functions]) or make_scorers(config.scorers)
    pool.start([module for scorer in scorers for module in scorer.preload])
    demand(config, algorithm, prompts, scorers)

    def frozen_copy() -> Policy:
        copy = load_policy(recipe.run.model, folder, seed=seed, trained=trained)
        copy.module.requires_grad_(False).to(policy.device)
        return copy

    source = frozen_copy() if config.rollout.sync == "never" else policy
    measurements = {
        name: measurement(e, config.rollout.max_tokens, policy.tokenizer, seed) for name, e in config.evaluation.items()
    }
    limits = (
        max([config.data.max_prompt_tokens, *(m.prompts.report.longest for m in measurements.values())]),
        max([config.rollout.max_tokens, *(m.sampling.max_tokens for m in measurements.values())]),
    )
    limits = within(base_model(policy.model).config.get_text_config(), prompts.report.longest, limits)
    engine = make_engine(config.rollout.engine, source, limits)
    evaluator = None
    if any(m.scorers for m in measurements.values()):
        own = source is policy and not replays(config.rollout.engine)
        evaluator = engine if own else make_engine("transformers", policy, limits)
    own_reference = policy.own_reference and trained is None
    needs_reference = any(p.name == "ref" for p in passes(algorithm)) and not own_reference
    training, rollout = config.training, config.rollout
    gap = training.max_logprob_gap or LOGPROB_GAP[policy.precision]
    settings = Settings(training.tokens_per_micro_batch, rollout.max_tokens, training.max_grad_norm, gap)
    return StageRun(
        config=config,
        index=index,
        algorithm=algorithm,
        prompts=prompts,
        scorers=scorers,
        engine=engine,
        sampling=Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p, rollout.top_k),
        measurements=measurements,
        evaluator=evaluator,
        updater=Updater(policy, make_optimizer(policy, training), ranks, settings, source),
        reference=frozen_copy() if needs_reference else None,
        pool=pool,
        steps=training.steps or -(-len(prompts) // rollout.prompts_per_step),
        memory=algorithm.condition.init(memory) if algorithm.condition else memory,
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


def replays(named: Named) -> bool:
    """Whether an engine hands out stored answers instead of sampling."""
    return getattr(catalog.get("engines", catalog.split_named(named)[0]), "replays", False)


def fitted(prompt: Prompt, tokenizer: Any, limit: int) -> Prompt:
    """The prompt with its tokens, at most `limit`: of a longer one the feedback is halved until it is gone, never the
    question."""
    while len(ids := tuple(render(prompt, tokenizer))) > limit and prompt.feedback:
        prompt = prompt.conditioned(prompt.feedback[: len(prompt.feedback) // 2] or None)
    return replace(prompt, ids=ids)


def make_engine(named: Named, policy: Policy, limits: tuple[int, int]) -> Engine:
    """The engine that a recipe names, for prompts and answers of at most `limits` tokens."""
    name, options = catalog.split_named(named)
    part = catalog.get("engines", name)
    problems = check_options(part, options, "rollout.engine")
    if problems:
        raise RecipeError(problems)
    stops = stop_ids(policy.tokenizer, getattr(policy.model, "generation_config", None))
    return part(Context(policy, policy.tokenizer, stops, *limits, policy.precision), **options)


def measurement(config: Evaluation, max_tokens: int, tokenizer: Any, seed: int) -> Measurement:
    """Load an evaluation's prompts. A benchmark brings its data, scorers and sampling; keys that are set win over it.

    A greedy benchmark is asked once, unless the evaluation says how often.
    """
    data, scorers, num_samples, adapt = config.data, list(config.scorers), config.num_samples, None
    sampling = Sampling(config.max_tokens or max_tokens, config.temperature, config.top_p, config.top_k)
    if config.benchmark is not None:
        benchmark: Benchmark = catalog.get("benchmarks", config.benchmark)()
        changes = config.data.model_dump(exclude_unset=True) if config.data else {}
        data = Data.model_validate(overlay(Tree(benchmark.data), Tree(changes)).values)
        scorers, adapt = scorers or list(benchmark.scorers), benchmark.adapt
        given = {k: getattr(config, k) for k in SAMPLED if k in config.model_fields_set}
        sampling = replace(benchmark.sampling, **given)
        if "num_samples" not in config.model_fields_set:
            num_samples = benchmark.num_samples if sampling.temperature > 0 else 1
    limited = {"shuffle": False} | ({"limit": config.limit} if config.limit else {})
    prompts = load(data.model_copy(update=limited), tokenizer, seed=seed, adapt=adapt)
    return Measurement(config, prompts, make_scorers(scorers), sampling, num_samples)


def make_optimizer(policy: Policy, training: Training) -> torch.optim.Optimizer:
    """AdamW on everything that is trained; weight decay on matrices only."""
    named = [p for _, p in policy.trainable()]
    groups = [
        {"params": [p for p in named if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.learning_rate, betas=tuple(training.betas))
