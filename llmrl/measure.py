"""The evaluations of a stage: sampled answers judged by scorers, or the objective on stored answers."""

from __future__ import annotations

from contextlib import nullcontext

from llmrl import evaluation
from llmrl.loop import Loop
from llmrl.rollout.replay import ReplayEngine
from llmrl.run import Measurement
from llmrl.tracking.log import Log
from llmrl.training.assemble import assemble, pairs_of
from llmrl.types import Group


def measure(loop: Loop, log: Log, global_step: int, names: list[str]) -> dict[str, float]:
    """Metrics of the evaluations named, measured on the main process; their records go to the run's folder."""
    out: dict[str, float] = {}
    if any(loop.stage.measurements[name].scorers for name in names):
        loop.stage.catch_up()
    reference = loop.stage.reference
    with loop.stage.updater.policy.whole(), reference.whole() if reference is not None else nullcontext():
        if loop.ranks.main:
            out = measured(loop, log, global_step, names)
        loop.ranks.wait()
    return out


def measured(loop: Loop, log: Log, global_step: int, names: list[str]) -> dict[str, float]:
    """What `measure` gives, on this process alone."""
    out: dict[str, float] = {}
    for name in names:
        what = loop.stage.measurements[name]
        report = what.prompts.report
        out[f"eval/{name}/refused"] = report.too_long + report.bad
        if what.scorers:
            result = sampled(loop, what)
            log.write_evaluation(name, global_step, result.records)
            out |= result.metrics(name)
        else:
            found = stored(loop, what)
            out |= {f"eval/{name}/{k.removeprefix('pairs/').removeprefix('steps/')}": v for k, v in found.items()}
    return out


def sampled(loop: Loop, what: Measurement) -> evaluation.Evaluation:
    """Held-out accuracy of sampled answers, under the condition that the evaluation or the algorithm asks for."""
    stage, config, prompts = loop.stage, what.config, what.prompts.prompts
    if config.feedback is not None:
        prompts = [p.conditioned(config.feedback) for p in prompts]
    elif stage.algorithm.condition is not None:
        prompts = stage.algorithm.condition.refine(stage.memory, prompts, loop.seed)
    return evaluation.evaluate(
        stage.evaluator,
        stage.render(prompts),
        what.scorers,
        what.sampling,
        num_samples=what.num_samples,
        seed=loop.seed,
        decode=stage.decode,
        pool=stage.pool,
    )


def stored(loop: Loop, what: Measurement) -> dict[str, float]:
    """Means of the objective and of its statistics over stored answers; nothing is trained."""
    stage, prompts = loop.stage, what.prompts.prompts
    answers = ReplayEngine(stage.engine.context).generate(prompts, what.sampling, 1, [])
    groups = [Group(p, tuple(rs)) for p, rs in zip(prompts, answers, strict=True)]
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    batch = assemble(groups, places, [groups[g].prompt for g, _ in places], 0, [], 1.0, stage.wants)
    if stage.stored_pairs:
        batch.pairs = pairs_of(groups, places)
    loop.run_passes(batch)
    return stage.updater.measure(batch, stage.algorithm, stage.states) | {
        "truncated": float(batch.arrays["truncated"].float().mean())
    }
