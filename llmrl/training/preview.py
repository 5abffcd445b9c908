"""What a recipe would do, shown without training: data through the template, scorers on a fake answer, memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from llmrl import catalog
from llmrl.algorithm import Algorithm
from llmrl.combinations import cautions
from llmrl.composition import build_stage, replays
from llmrl.config import Model
from llmrl.data.prompts import load
from llmrl.data.tokenizer import load_tokenizer
from llmrl.demands import demand, refuse_spread
from llmrl.errors import LlmrlError, ModelError
from llmrl.options import check_options
from llmrl.plan import passes
from llmrl.policy.load import make, pinned, unloadable
from llmrl.policy.memory import activation_bytes, recomputes
from llmrl.pool import Pool
from llmrl.recipe import Recipe, StageConfig
from llmrl.run import most_tokens
from llmrl.scoring import make_scorers, score
from llmrl.tracking.text import one_line
from llmrl.types import Group, Rollout

FAKE_ANSWER = "I think so. The answer is \\boxed{42}. <answer>42</answer>"
SHOWN = 600  # characters of a rendered prompt


def preview(recipe: Recipe) -> str:
    """The report of `llmrl check`. Raises LlmrlError with the first thing that would stop the run."""
    algorithms = [build_stage(stage) for stage in recipe.stages]
    for stage, algorithm in zip(recipe.stages, algorithms, strict=True):
        if recipe.run.parallel != "auto":
            refuse_spread(stage, algorithm, recipe.run.parallel)
    with tempfile.TemporaryDirectory() as folder:
        model = recipe.run.model
        source = pinned(model) if model.path else make(model, Path(folder), recipe.run.seed)
        tokenizer, config = description(source)
        out = [
            f"{recipe.path}: {len(recipe.stages)} stage{'s' if len(recipe.stages) > 1 else ''}, nothing is wrong with it"
        ]
        read = any(extra.source == "extra_data" for algorithm in algorithms for extra in algorithm.extra)
        if any(stage.extra_data for stage in recipe.stages) and not read:
            out.append(
                "careful: extra_data is set, and no stage trains on it. Set algorithm.extra: [{objective: ptx}]."
            )
        for stage, algorithm in zip(recipe.stages, algorithms, strict=True):
            plans = passes(algorithm, online=not replays(stage.rollout.engine))
            warned = [f"  careful: {line}" for line in cautions(algorithm)]
            out += ["", f"stage {stage.name}", *warned, *data_lines(stage, algorithm, tokenizer, recipe.run.seed)]
            out += [f"  pass {p.name}: {p.why}" for p in plans]
            values = any("values" in p.arrays for p in plans)
            reference = any(p.name == "ref" for p in plans) and model.lora is None
            out.append(f"  memory, estimated: {memory(config, model, stage, reference, values)}")
    return "\n".join(out)


def description(source: str) -> tuple[Any, Any]:
    """(tokenizer, configuration) of a model, without its weights."""
    from transformers import AutoConfig

    try:
        return load_tokenizer(source), AutoConfig.from_pretrained(source, trust_remote_code=False)
    except LlmrlError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise anything
        raise unloadable(source, error) from error


def data_lines(stage: StageConfig, algorithm: Algorithm, tokenizer: Any, seed: int) -> list[str]:
    """What was loaded, the first prompt as the model sees it, and what each scorer says of a fake answer."""
    name, options = catalog.split_named(stage.rollout.engine)
    problems = check_options(catalog.get("engines", name), options, "rollout.engine")
    if problems:
        raise ModelError("\n".join(problems))
    prompts = load(stage.data, tokenizer, seed=seed, answers=replays(stage.rollout.engine))
    scorers = make_scorers(stage.scorers)
    demand(stage, algorithm, prompts, scorers)
    first = prompts.prompts[0]
    steps = stage.training.steps or -(-len(prompts) // stage.rollout.prompts_per_step)
    lines = [f"  {prompts.report}", f"  {steps:,} steps of {stage.rollout.prompts_per_step} prompts"]
    lines += [f"  refused: {one_line(reason, 160)}" for reason in prompts.report.reasons[:3]]
    if any(extra.source == "extra_data" for extra in algorithm.extra):
        lines.append(f"  extra_data: {load(stage.extra_data, tokenizer, seed=seed, answers=True).report}")
    lines.append(f"  first prompt, {len(first.ids)} tokens: {one_line(tokenizer.decode(list(first.ids)), SHOWN)}")
    group = Group(first, (Rollout((0,), FAKE_ANSWER, stored=first.completions[0] if first.completions else None),))
    with Pool(workers=1) as pool:
        (scored,) = score([group], scorers, stage.scoring.model_copy(update={"max_error_share": 1.0}), pool)
    for found in scored.scores:
        for scorer, one in found.items():
            said = f"error: {one.error}" if one.error else f"{one.value} {one.feedback or ''}"
            lines.append(f"  {scorer} on {FAKE_ANSWER!r}: {one_line(said, 200)}")
    return lines


def memory(config: Any, model: Model, stage: StageConfig, reference: bool, values: bool) -> str:
    """Weights, gradients and AdamW moments in fp32, a frozen reference, and activations of one micro-batch."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in whole.parameters())
    trained = parameters
    if model.lora is not None:
        linear = [m for m in whole.modules() if isinstance(m, torch.nn.Linear)]
        trained = sum(model.lora.rank * (m.in_features + m.out_features) for m in linear)
    tokens = most_tokens(stage)
    recomputed = recomputes(whole, model, tokens)
    parts = {
        "weights": 4 * parameters,
        "gradients and optimizer": 12 * trained,
        "reference": 4 * parameters * reference,
        "activations" + " (computed again)" * recomputed: activation_bytes(config, tokens, model.precision, recomputed),
    }
    listed = " + ".join(f"{name} {size(number)}" for name, number in parts.items() if number)
    head = ", and a value head" if values else ""
    return (
        f"{size(sum(parts.values()))} = {listed} ({parameters:,} parameters, {trained:,} trained{head}); the engine's "
        "key-value cache comes on top"
    )


def size(number: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{number / (1 << 20):.0f} MiB" if number < 1 << 30 else f"{number / (1 << 30):.1f} GiB"
