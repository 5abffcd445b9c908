"""Everything that a stage of a recipe needs, built from the recipe: policy, reference, data, engine, scorers, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrl import catalog
from llmrl.ahead import Ahead
from llmrl.algorithm import Algorithm
from llmrl.batch import Batch, base_name, sources
from llmrl.composition import build_stage as build_algorithm
from llmrl.composition import replays
from llmrl.config import Data, Evaluation, Named, Training
from llmrl.data.features import features
from llmrl.data.prompts import PromptSet, load
from llmrl.data.render import render, stop_ids
from llmrl.demands import demand, within
from llmrl.errors import DataError, RecipeError
from llmrl.evaluation import Benchmark
from llmrl.options import check_options
from llmrl.plan import everything_named, passes, required
from llmrl.policy.forward import ACTION_VALUES, base_model
from llmrl.policy.load import load_policy
from llmrl.policy.model import Policy
from llmrl.policy.sharding import shape_of
from llmrl.pool import Pool
from llmrl.recipe import Recipe, StageConfig
from llmrl.recipe_tree import Tree, overlay
from llmrl.rollout.engine import Context, Engine
from llmrl.rollout.replay import ReplayEngine
from llmrl.sampling.per_token import PerToken
from llmrl.scoring import Scorer, distinct, from_function, make_scorers
from llmrl.training.assemble import ragged
from llmrl.training.buffer import Buffer
from llmrl.training.ranks import Ranks
from llmrl.training.update import Settings, Updater
from llmrl.types import Group, Prompt, Rollout, Sampling

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

    memory: the state of the condition part, plain data, also carried through stages without one. states: those of other
    parts, by 'stage.name'. version: of the weights that rollouts are sampled by. drawn: batches of prompts dealt so
    far. feedback_cut: conditions shortened so far because the prompt would have been too long. extra_prompts: demonstrations
    beside the rollouts. dealt: the prompts that are sampled from. anchors: mean reward of the first policy's rollouts by prompt.
    kept, kept_prompts: a right answer of the first policy to each prompt that is not sampled from any more. buffer: of rollouts
    that a killed run need not sample again. ahead: the steps that are sampled while earlier ones train, where the recipe
    says so; `version` is then that of the weights in training, and the engine's may be older.
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
    extra_prompts: PromptSet | None = None
    memory: Any = None
    states: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    drawn: int = 0
    feedback_cut: int = 0
    dealt: PromptSet | None = None
    anchors: dict[str, float] = field(default_factory=dict)
    kept: dict[str, Rollout] = field(default_factory=dict)
    kept_prompts: PromptSet | None = None
    buffer: Buffer | None = None
    ahead: Ahead | None = None

    @property
    def plan(self) -> set[str]:
        """Names of the passes that run."""
        return {p.name for p in passes(self.algorithm)}

    @property
    def planned(self) -> set[str]:
        """The arrays that the passes make."""
        return {array for p in passes(self.algorithm) for array in p.arrays}

    @property
    def wants(self) -> set[str]:
        """The arrays that some part asks for, derived ones followed to what they are made of."""
        return sources(required(self.algorithm))

    @property
    def paired(self) -> bool:
        """Whether some part looks at rows through pairs."""
        return any(name != base_name(name) for name in required(self.algorithm))

    @property
    def stored_pairs(self) -> bool:
        """Whether the pairs are those that the data brings."""
        return self.paired and replays(self.config.rollout.engine)

    def catch_up(self) -> None:
        """Have the engine idle and with the weights of now, for whoever needs it next; where it runs ahead it may not be."""
        if self.ahead is None:
            return
        self.ahead.drain()
        if self.ahead.version != self.version:
            self.engine.sync(self.updater.policy, self.version)
            self.ahead.version = self.version

    def sampling_now(self) -> Sampling:
        """How to sample, with the temperature of each token where the algorithm sets it."""
        rule = self.algorithm.sampling
        if rule is None:
            return self.sampling
        state = self.states[f"sampling.{catalog.name_of(rule)}"]
        return replace(self.sampling, per_token=PerToken(rule, state, self.sampling.temperature))

    def remember_sampling(self, rollouts: Sequence[Rollout], ranks: Ranks) -> None:
        """Let the rule that sets temperatures see what was sampled, on all ranks."""
        rule = self.algorithm.sampling
        if rule is not None:
            key = f"sampling.{catalog.name_of(rule)}"
            everyone = [r for part in ranks.gather(list(rollouts)) for r in part]
            _, self.states[key] = rule.apply(self.states[key], everyone)

    def stored(self, prompts: Sequence[Prompt]) -> list[Group]:
        """The prompts with the answers that came with them, rejected ones left out; token for token where they are a
        policy's own.
        """
        limit, replay = self.sampling.max_tokens, ReplayEngine(self.engine.context)
        held = [replace(p, completions=tuple(c for c in p.completions if c.label != "rejected")) for p in prompts]
        own = [() if p.id not in self.kept else (self.kept[p.id],) for p in prompts]
        told = replay.generate(held, Sampling(limit), 1, [0] * len(held))
        return [
            Group(p, mine or tuple(self.decoded(r) for r in rs)) for p, mine, rs in zip(prompts, own, told, strict=True)
        ]

    def describe(self, batch: Batch, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], number: int) -> None:
        """Write the arrays that prompts, rollouts and the step itself say; before there are anchors, the others."""
        width, wants = batch.arrays["loss_mask"].shape[1], self.wants - (set() if self.anchors else {"anchor_rewards"})
        wants |= {"staleness"} if self.ahead is not None else set()
        batch.arrays["weights"] = torch.ones(len(batch), width)
        batch.constants |= {
            "progress": torch.tensor(number / max(self.steps, 1)),
            "step_number": torch.tensor(number),
        }
        plain: dict[str, Callable[[], Tensor]] = {
            "tokens": lambda: ragged([r.ids for r in rollouts], width, torch.long),
            "staleness": lambda: torch.tensor([self.version - r.version for r in rollouts], dtype=torch.long),
            "domains": lambda: torch.tensor([domain_of(p) for p in prompts], dtype=torch.long),
            "anchor_rewards": lambda: torch.tensor([self.anchors[p.id] for p in prompts]),
        }
        batch.arrays |= {name: make() for name, make in plain.items() if name in wants}
        batch.arrays |= features(rollouts, width, wants, self.config.data, self.updater.policy.tokenizer)
        if "greedy_rewards" in wants:
            batch.arrays["probe"] = torch.tensor([r.probe for r in rollouts], dtype=torch.bool)

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
    """The policy a run starts from, with the heads and the noise that its stages ask for."""
    algorithms = [build_algorithm(stage) for stage in recipe.stages]
    wanted = {name for algorithm in algorithms for name in sources(everything_named(algorithm))}
    policy = load_policy(
        recipe.run.model,
        folder,
        seed=recipe.run.seed,
        values="values" in wanted,
        scores="scores" in wanted,
        action_values=bool(wanted & set(ACTION_VALUES)),
        trained=trained,
        tokens=max(most_tokens(stage) for stage in recipe.stages),
    )
    noises = [algorithm.perturb for algorithm in algorithms if algorithm.perturb is not None]
    if noises:
        policy.module.noise = noises[0].apply(policy.model)
    return policy


def most_tokens(config: StageConfig) -> int:
    """The most that go through the model at once: a micro-batch, or a single row that is longer."""
    longest = config.data.max_prompt_tokens + config.rollout.max_tokens
    return max(config.training.tokens_per_micro_batch, longest)


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
    extra_prompts = load(config.extra_data, policy.tokenizer, seed=seed, answers=True) if config.extra_data else None

    scorers = distinct([from_function(f) for f in functions]) or make_scorers(config.scorers)
    pool.start([module for scorer in scorers for module in scorer.preload])
    demand(config, algorithm, prompts, scorers)

    def frozen_copy() -> Policy:
        copy = load_policy(recipe.run.model, folder, seed=seed, trained=trained)
        copy.module.requires_grad_(False)
        ranks.place(copy)
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
    engine = make_engine(config.rollout.engine, source, limits, algorithm.sampling is not None)
    evaluator = None
    if any(m.scorers for m in measurements.values()):
        own = source is policy and not replays(config.rollout.engine)
        evaluator = engine if own else make_engine("transformers", policy, limits)
    own_reference = policy.own_reference and trained is None
    needs_reference = any(p.name == "ref" for p in passes(algorithm)) and not own_reference
    training, rollout = config.training, config.rollout
    gap = training.max_logprob_gap or LOGPROB_GAP[policy.precision]
    settings = Settings(
        training.tokens_per_micro_batch, rollout.max_tokens, training.max_grad_norm, gap, training.max_skipped
    )
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
        extra_prompts=extra_prompts,
        dealt=prompts,
        states={key: part.init() for key, part in algorithm.remembering().items()},
        memory=algorithm.condition.init(memory) if algorithm.condition else memory,
    )


def domain_of(prompt: Prompt) -> int:
    """The number in the row's column `domain`, 0 without one. DataError for anything else."""
    found = prompt.columns.get("domain", 0)
    if not isinstance(found, int) or found < 0:
        raise DataError(f"prompt {prompt.id}: its column domain holds {found!r}; expected a whole number from 0 on.")
    return found


def fitted(prompt: Prompt, tokenizer: Any, limit: int) -> Prompt:
    """The prompt with its tokens, at most `limit`: of a longer one the feedback is halved until it is gone, never the
    question."""
    while len(ids := tuple(render(prompt, tokenizer))) > limit and prompt.feedback:
        prompt = prompt.conditioned(prompt.feedback[: len(prompt.feedback) // 2] or None)
    return replace(prompt, ids=ids)


def make_engine(named: Named, policy: Policy, limits: tuple[int, int], per_token: bool = False) -> Engine:
    """The engine that a recipe names, for prompts and answers of at most `limits` tokens.

    per_token: whether some sampling will set the temperature of each token.
    """
    name, options = catalog.split_named(named)
    part = catalog.get("engines", name)
    problems = check_options(part, options, "rollout.engine")
    if problems:
        raise RecipeError(problems)
    stops = stop_ids(policy.tokenizer, getattr(policy.model, "generation_config", None))
    return part(Context(policy, policy.tokenizer, stops, *limits, policy.precision, per_token), **options)


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
    """AdamW on everything that is trained; weight decay on matrices only. `rate`: of a group, by which the step's learning
    rate is multiplied; noise inside the model has one of its own. RecipeError where `train_only` leaves nothing.
    """
    only, noise = training.train_only, policy.module.noise
    trained = [(n, p) for n, p in policy.trainable() if not only or any(piece in n for piece in only)]
    if not trained:
        some = ", ".join(n for n, _ in policy.trainable()[-3:])
        raise RecipeError(f"training.train_only: {only} leaves nothing to train. Names of parameters: ..., {some}.")
    own = [p for n, p in trained if n.startswith("noise.")]
    named = [p for n, p in trained if not n.startswith("noise.")]
    groups = [
        {"params": [p for p in named if len(shape_of(p)) >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in named if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    if own:
        rate = noise.learning_rate / training.learning_rate
        groups.append({"params": own, "weight_decay": 0.0, "rate": rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.learning_rate, betas=tuple(training.betas))
