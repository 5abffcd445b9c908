"""What can be trained on answers of older weights (`rollout.staleness`), found before anything loads."""

from __future__ import annotations

from collections.abc import Iterator

from llmrl import catalog
from llmrl.algorithm import STAGES, Algorithm
from llmrl.recipe import StageConfig

# parts whose papers take answers of older weights as they are, without their probabilities
TAKES_OLD = {"advantage": ("asymre",), "objective": ("opmd_simple",)}
UNCORRECTING = ("sampling", "diagnostics")  # stages that change nothing of the loss
INSUFFICIENT = ("opsm",)  # reads who wrote the answers, and leaves all but the worst of them as they are


def refusals(stage: StageConfig, algorithm: Algorithm) -> list[str]:
    """Why this stage cannot sample ahead of its training: what was found and the next move, beginning with the dotted key."""
    ahead = stage.rollout.staleness
    if not ahead:
        return []
    at = f"rollout.staleness: found {ahead}"
    return [f"{at}, {reason}" for reason in (*unable(stage), *bound(algorithm), *uncorrected(algorithm))]


def unable(stage: StageConfig) -> Iterator[str]:
    """What keeps the engine from sampling while the trainer trains."""
    name, options = catalog.split_named(stage.rollout.engine)
    engine = catalog.get("engines", name)
    if not getattr(engine, "own_weights", False):
        yield (
            f"and the engine {name} has no weights of its own to sample by while others are trained; expected 0 with it. Set "
            "rollout.engine: vllm_server, or vllm."
        )
    elif getattr(engine, "in_step", "") in options and options[engine.in_step] != 1:
        yield (
            f"and {name} with {engine.in_step}: {options[engine.in_step]}, whose processes have to sample in step with each "
            f"other and with the training; expected 0, or {engine.in_step}: 1. rollout.engine: vllm_server spreads them itself."
        )
    if stage.rollout.sync == "never":
        yield "and rollout.sync: never, under which no answer is of the weights in training. Leave one of the two out."


def bound(algorithm: Algorithm) -> Iterator[str]:
    """What has to be known of a step before the next one's prompts are dealt."""
    if algorithm.condition is not None:
        yield (
            f"and algorithm.condition ({catalog.name_of(algorithm.condition)}), which writes into the next prompts what was said "
            "of the last answers; expected 0. Leave rollout.staleness out."
        )
    if algorithm.before is not None and algorithm.before.refresh_every:
        yield (
            "and algorithm.before.refresh_every, which chooses anew between steps what is sampled from; expected 0. Leave one "
            "of the two out."
        )


def uncorrected(algorithm: Algorithm) -> Iterator[str]:
    """Whether nothing accounts for who wrote the answers. `old_logprobs` are the trainer's as the updates begin: a ratio to
    them says nothing of the steps before."""
    reading = (part for stage in STAGES if stage not in UNCORRECTING for part in algorithm.at(stage))
    if any("rollout_logprobs" in catalog.inputs_of(p) and catalog.name_of(p) not in INSUFFICIENT for p in reading):
        return
    if any(catalog.name_of(part) in names for stage, names in TAKES_OLD.items() for part in algorithm.at(stage)):
        return
    yield (
        "and no part of the algorithm reads rollout_logprobs, so that answers of older weights would count as the policy's own. "
        "Add ratio_to_sampler to algorithm.shaping where the loss clips a ratio, importance_weights where it has none, or take a "
        "method that has a correction, such as tis or decoupled_ppo."
    )
