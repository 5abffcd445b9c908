"""Name → part. One literal table a kind; nothing is imported until it is asked for.

A part is a callable: positional parameters name the arrays it reads, keyword-only parameters are its options.
`module:attribute` works wherever a name does. Other packages add scorers and benchmarks by entry point.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from llmrl.errors import CatalogError, nearest

TABLES: dict[str, dict[str, str]] = {
    "algorithms": {
        "reinforce": "llmrl.algorithms.reinforce:reinforce",
        "reinforce_pp": "llmrl.algorithms.reinforce_pp:reinforce_pp",
        "remax": "llmrl.algorithms.remax:remax",
        "rloo": "llmrl.algorithms.rloo:rloo",
        "grpo": "llmrl.algorithms.grpo:grpo",
        "dr_grpo": "llmrl.algorithms.dr_grpo:dr_grpo",
        "dapo": "llmrl.algorithms.dapo:dapo",
        "ppo": "llmrl.algorithms.ppo:ppo",
        "ppo_max": "llmrl.algorithms.ppo_max:ppo_max",
        "trpo": "llmrl.algorithms.trpo:trpo",
        "fixpo": "llmrl.algorithms.fixpo:fixpo",
        "taypo": "llmrl.algorithms.taypo:taypo",
        "bnpo": "llmrl.algorithms.bnpo:bnpo",
        "clip_cov": "llmrl.algorithms.clip_cov:clip_cov",
        "kl_cov": "llmrl.algorithms.kl_cov:kl_cov",
        "empg": "llmrl.algorithms.empg:empg",
        "canon": "llmrl.algorithms.canon:canon",
        "adora": "llmrl.algorithms.adora:adora",
        "d3s": "llmrl.algorithms.d3s:d3s",
        "hapo": "llmrl.algorithms.hapo:hapo",
        "aspo": "llmrl.algorithms.aspo:aspo",
        "stratified_grpo": "llmrl.algorithms.stratified_grpo:stratified_grpo",
        "salt": "llmrl.algorithms.salt:salt",
        "pvpo": "llmrl.algorithms.pvpo:pvpo",
        "blockwise": "llmrl.algorithms.blockwise:blockwise",
        "poly_ppo": "llmrl.algorithms.poly_ppo:poly_ppo",
        "dpp_grpo": "llmrl.algorithms.dpp_grpo:dpp_grpo",
        "partial_pg": "llmrl.algorithms.partial_pg:partial_pg",
        "opo": "llmrl.algorithms.opo:opo",
        "gdpo": "llmrl.algorithms.gdpo:gdpo",
        "passk": "llmrl.algorithms.passk:passk",
        "maxrl": "llmrl.algorithms.maxrl:maxrl",
        "rec": "llmrl.algorithms.rec:rec",
        "opmd": "llmrl.algorithms.opmd:opmd",
        "asymre": "llmrl.algorithms.asymre:asymre",
        "red_drop": "llmrl.algorithms.red_drop:red_drop",
        "red_weight": "llmrl.algorithms.red_weight:red_weight",
        "mhpo": "llmrl.algorithms.mhpo:mhpo",
        "alp": "llmrl.algorithms.alp:alp",
        "apa": "llmrl.algorithms.apa:apa",
        "awr": "llmrl.algorithms.awr:awr",
        "p3o": "llmrl.algorithms.p3o:p3o",
        "rebel": "llmrl.algorithms.rebel:rebel",
        "dph_rl": "llmrl.algorithms.dph_rl:dph_rl",
        "hnpg": "llmrl.algorithms.hnpg:hnpg",
        "ahpo": "llmrl.algorithms.ahpo:ahpo",
        "gspo": "llmrl.algorithms.gspo:gspo",
        "cispo": "llmrl.algorithms.cispo:cispo",
        "sapo": "llmrl.algorithms.sapo:sapo",
        "luspo": "llmrl.algorithms.luspo:luspo",
        "gmpo": "llmrl.algorithms.gmpo:gmpo",
        "vespo": "llmrl.algorithms.vespo:vespo",
        "dppo": "llmrl.algorithms.dppo:dppo",
        "decoupled_ppo": "llmrl.algorithms.decoupled_ppo:decoupled_ppo",
        "tis": "llmrl.algorithms.tis:tis",
        "icepop": "llmrl.algorithms.icepop:icepop",
        "m2po": "llmrl.algorithms.m2po:m2po",
        "scalerl": "llmrl.algorithms.scalerl:scalerl",
        "dpo": "llmrl.algorithms.dpo:dpo",
        "fcp": "llmrl.algorithms.fcp:fcp",
        "sft": "llmrl.algorithms.sft:sft",
        "bradley_terry": "llmrl.algorithms.bradley_terry:bradley_terry",
        "process_reward": "llmrl.algorithms.process_reward:process_reward",
    },
    "combiners": {
        "weighted_sum": "llmrl.combiners.weighted_sum:weighted_sum",
        "product": "llmrl.combiners.product:product",
        "gated": "llmrl.combiners.gated:gated",
        "first_that_applies": "llmrl.combiners.first_that_applies:first_that_applies",
        "kl_in_reward": "llmrl.combiners.kl_in_reward:kl_in_reward",
        "process_rewards": "llmrl.combiners.process_rewards:process_rewards",
        "gdpo": "llmrl.combiners.gdpo:gdpo",
        "effective_reward": "llmrl.combiners.effective_reward:effective_reward",
        "overlong_penalty": "llmrl.combiners.length:overlong_penalty",
        "kimi_length": "llmrl.combiners.length:kimi_length",
        "l1_length": "llmrl.combiners.length:l1_length",
        "cosine_length": "llmrl.combiners.length:cosine_length",
        "repetition_penalty": "llmrl.combiners.repetition:repetition_penalty",
        "ppo_max_normalisation": "llmrl.combiners.ppo_max:PpoMaxNormalisation",
    },
    "selections": {
        "one_right_one_wrong": "llmrl.selections.contrast:one_right_one_wrong",
        "dynamic_sampling": "llmrl.selections.dynamic_sampling:dynamic_sampling",
        "d3s": "llmrl.selections.d3s:d3s",
        "pvpo_presample": "llmrl.selections.prompts:pvpo_presample",
        "dph_split": "llmrl.selections.prompts:dph_split",
        "red_drop": "llmrl.selections.red:red_drop",
        "red_weight": "llmrl.selections.red:red_weight",
        "drop_truncated": "llmrl.selections.drop:drop_truncated",
        "drop_stale": "llmrl.selections.drop:drop_stale",
        "best_worst_pairs": "llmrl.selections.pairs:best_worst_pairs",
        "all_pairs": "llmrl.selections.pairs:all_pairs",
        "disjoint_pairs": "llmrl.selections.pairs:disjoint_pairs",
    },
    "conditions": {
        "feedback": "llmrl.conditions.feedback:Feedback",
    },
    "advantages": {
        "grpo": "llmrl.advantages.group:standardised",
        "rloo": "llmrl.advantages.group:leave_one_out",
        "dr_grpo": "llmrl.advantages.group:centred",
        "opo": "llmrl.advantages.group:length_weighted",
        "maxrl": "llmrl.advantages.group:maxrl",
        "scalerl": "llmrl.advantages.batch:scalerl",
        "gpg": "llmrl.advantages.batch:gpg",
        "reinforce": "llmrl.advantages.reinforce:Reinforce",
        "remax": "llmrl.advantages.reinforce:remax",
        "reinforce_pp": "llmrl.advantages.reinforce_pp:reinforce_pp",
        "reinforce_pp_baseline": "llmrl.advantages.reinforce_pp:reinforce_pp_baseline",
        "gae": "llmrl.advantages.gae:gae",
        "bnpo": "llmrl.advantages.bnpo:bnpo",
        "canon": "llmrl.advantages.canon:canon",
        "canon_entropy": "llmrl.advantages.canon:canon_entropy",
        "stratified": "llmrl.advantages.stratified:stratified",
        "salt": "llmrl.advantages.salt:salt",
        "pvpo": "llmrl.advantages.pvpo:pvpo",
        "pvpo_gate": "llmrl.advantages.pvpo:pvpo_gate",
        "blockwise": "llmrl.advantages.blockwise:blockwise",
        "polychromic": "llmrl.advantages.polychromic:polychromic",
        "dpp": "llmrl.advantages.dpp:dpp",
        "partial_returns": "llmrl.advantages.partial_returns:partial_returns",
        "gdpo": "llmrl.advantages.gdpo:gdpo",
        "passk_top": "llmrl.advantages.passk:passk_top",
        "passk_analytic": "llmrl.advantages.passk:passk_analytic",
        "rec": "llmrl.advantages.rec:rec",
        "opmd": "llmrl.advantages.rec:opmd",
        "asymre": "llmrl.advantages.rec:asymre",
        "hapo_group": "llmrl.advantages.hapo:hapo_group",
        "ahpo_gate": "llmrl.advantages.ahpo:ahpo_gate",
        "hnpg_critic": "llmrl.advantages.hnpg:hnpg_critic",
    },
    "shaping": {
        "empg": "llmrl.shaping.empg:empg",
        "adora": "llmrl.shaping.adora:adora",
        "aspo": "llmrl.shaping.aspo:aspo",
        "entropy_advantage": "llmrl.shaping.entropy:entropy_advantage",
        "top_entropy_mask": "llmrl.shaping.entropy:top_entropy_mask",
        "importance_weights": "llmrl.shaping.importance:importance_weights",
        "rejection_mask": "llmrl.shaping.importance:rejection_mask",
        "ratio_to_sampler": "llmrl.shaping.importance:ratio_to_sampler",
        "icepop": "llmrl.shaping.importance:icepop",
        "opsm": "llmrl.shaping.opsm:opsm",
        "m2po_mask": "llmrl.shaping.m2po:m2po_mask",
        "clip_cov_selection": "llmrl.shaping.covariance:clip_cov_selection",
        "kl_cov_selection": "llmrl.shaping.covariance:kl_cov_selection",
        "hapo_scores": "llmrl.shaping.hapo:hapo_scores",
        "hapo_redistribution": "llmrl.shaping.hapo:hapo_redistribution",
    },
    "objectives": {
        "clipped_surrogate": "llmrl.objectives.policy:clipped_surrogate",
        "two_sided_clip": "llmrl.objectives.policy:two_sided_clip",
        "reinforce": "llmrl.objectives.reinforce:reinforce",
        "rloo_clip": "llmrl.objectives.sequence:rloo_clip",
        "gspo": "llmrl.objectives.sequence:gspo",
        "gspo_token": "llmrl.objectives.sequence:gspo_token",
        "luspo": "llmrl.objectives.sequence:luspo",
        "gmpo": "llmrl.objectives.sequence:gmpo",
        "clip_cov": "llmrl.objectives.covariance:clip_cov",
        "kl_cov": "llmrl.objectives.covariance:kl_cov",
        "hapo": "llmrl.objectives.hapo:hapo",
        "cispo": "llmrl.objectives.weighted:cispo",
        "cispo_rollout": "llmrl.objectives.weighted:cispo_rollout",
        "vespo": "llmrl.objectives.weighted:vespo",
        "sapo": "llmrl.objectives.sapo:sapo",
        "mhpo": "llmrl.objectives.mhpo:mhpo",
        "dppo": "llmrl.objectives.dppo:dppo",
        "prime": "llmrl.objectives.dppo:prime",
        "m2po": "llmrl.objectives.m2po:m2po",
        "decoupled_ppo": "llmrl.objectives.decoupled:decoupled_ppo",
        "taypo2": "llmrl.objectives.taypo:taypo2",
        "rec": "llmrl.objectives.rec:rec",
        "opmd_kimi": "llmrl.objectives.opmd:opmd_kimi",
        "opmd_pairwise": "llmrl.objectives.opmd:opmd_pairwise",
        "opmd_simple": "llmrl.objectives.opmd:opmd_simple",
        "alp": "llmrl.objectives.alp:alp",
        "apa": "llmrl.objectives.apa:apa",
        "awr": "llmrl.objectives.apa:awr",
        "p3o": "llmrl.objectives.p3o:p3o",
        "rebel": "llmrl.objectives.rebel:rebel",
        "ahpo": "llmrl.objectives.ahpo:ahpo",
        "hnpg": "llmrl.objectives.hnpg:hnpg",
        "hnpg_online": "llmrl.objectives.hnpg:hnpg_online",
        "blockwise": "llmrl.objectives.blockwise:blockwise",
        "value": "llmrl.objectives.value:value",
        "dpo": "llmrl.objectives.preference:dpo",
        "likelihood": "llmrl.objectives.likelihood:likelihood",
        "bradley_terry": "llmrl.objectives.bradley_terry:bradley_terry",
        "process_reward": "llmrl.objectives.process:process_reward",
    },
    "regularizers": {
        "kl_k1": "llmrl.regularizers.kl:kl_k1",
        "kl_k2": "llmrl.regularizers.kl:kl_k2",
        "kl_k3": "llmrl.regularizers.kl:kl_k3",
        "kl_k3_corrected": "llmrl.regularizers.kl:kl_k3_corrected",
        "kl_full": "llmrl.regularizers.kl:kl_full",
        "kl_old": "llmrl.regularizers.kl:kl_old",
        "adaptive_kl": "llmrl.regularizers.adaptive_kl:AdaptiveKl",
        "dph": "llmrl.regularizers.dph:dph",
        "dph_fresh": "llmrl.regularizers.dph:dph_fresh",
        "entropy": "llmrl.regularizers.entropy:entropy_bonus",
        "adaptive_entropy": "llmrl.regularizers.entropy:AdaptiveEntropy",
        "ptx": "llmrl.regularizers.ptx:ptx",
        "fixpo": "llmrl.regularizers.fixpo:FixpoPenalty",
        "fixpo_sampled": "llmrl.regularizers.fixpo:SampledFixpoPenalty",
    },
    "updates": {
        "epochs": "llmrl.updates.epochs:Epochs",
        "trpo": "llmrl.updates.trpo:Trpo",
        "fixpo": "llmrl.updates.fixpo:Fixpo",
    },
    "sampling": {
        "hapo_temperature": "llmrl.sampling.hapo:HapoTemperature",
    },
    "perturbations": {
        "layer_noise": "llmrl.policy.noise:LayerNoise",
    },
    "diagnostics": {
        "covariance": "llmrl.diagnostics.covariance:covariance",
        "entropy_law": "llmrl.diagnostics.entropy_law:entropy_law",
        "policy_cliff": "llmrl.diagnostics.policy_cliff:policy_cliff",
        "effective_sample_size": "llmrl.diagnostics.effective_sample_size:effective_sample_size",
    },
    "engines": {
        "transformers": "llmrl.rollout.transformers:TransformersEngine",
        "vllm": "llmrl.rollout.vllm:VllmEngine",
        "vllm_server": "llmrl.rollout.vllm_server:VllmServerEngine",
        "replay": "llmrl.rollout.replay:ReplayEngine",
        "scripted": "llmrl.rollout.scripted:ScriptedEngine",
    },
    "sources": {
        "arithmetic_chain": "llmrl.data.tasks:arithmetic_chain",
        "arithmetic_demonstrations": "llmrl.data.tasks:arithmetic_demonstrations",
        "addition": "llmrl.data.tasks:addition",
        "addition_demonstrations": "llmrl.data.tasks:addition_demonstrations",
        "addition_pairs": "llmrl.data.tasks:addition_pairs",
        "addition_solutions": "llmrl.data.solutions:addition_solutions",
        "addition_steps": "llmrl.data.solutions:addition_steps",
        "countdown": "llmrl.data.puzzles:countdown",
        "sorting": "llmrl.data.puzzles:sorting",
        "letter_count": "llmrl.data.puzzles:letter_count",
        "bracket_closing": "llmrl.data.puzzles:bracket_closing",
        "base_conversion": "llmrl.data.puzzles:base_conversion",
        "instruction_format": "llmrl.data.puzzles:instruction_format",
        "code_fix": "llmrl.data.code_fix:code_fix",
        "reasoning_gym": "llmrl.data.reasoning_gym:reasoning_gym",
    },
    "models": {
        "tiny": "llmrl.policy.tiny:tiny",
    },
}
PLUG_INS = {"scorers": "llmrl.scorers", "benchmarks": "llmrl.benchmarks"}


def kinds() -> list[str]:
    """Every kind of thing that a recipe can name."""
    return [*TABLES, *PLUG_INS]


@functools.cache
def table(kind: str) -> dict[str, str]:
    """{name: 'module:attribute'} of one kind, plug-ins included. CatalogError for an unknown kind or a bad plug-in."""
    if kind in TABLES:
        return TABLES[kind]
    if kind not in PLUG_INS:
        raise CatalogError(f"no kind named {kind!r}.{nearest(kind, kinds())} Kinds: {', '.join(kinds())}.")
    found: dict[str, str] = {}
    for entry in entry_points(group=PLUG_INS[kind]):
        module = importlib.import_module(entry.value.split(":")[0])
        catalog = getattr(module, "CATALOG", None)
        if not isinstance(catalog, dict):
            where = getattr(module, "__file__", None) or list(getattr(module, "__path__", ["?"]))[0]
            raise CatalogError(
                f"plug-in {entry.value!r} has no CATALOG: it resolved to {where}, another distribution owns that name. "
                "Run from the checkout root or uninstall it."
            )
        found |= catalog
    return found


def get(kind: str, name: str) -> Callable[..., Any]:
    """The callable behind a catalog name or a 'module:attribute'.

    Raises CatalogError with the nearest right name, or with the import's own error.
    """
    known = table(kind)
    path = known.get(name, name)
    if ":" not in path:
        raise CatalogError(
            f"no {singular(kind)} named {name!r}.{nearest(name, known)} `llmrl list {kind}` shows all {len(known)}; "
            "your own is named module:attribute."
        )
    module_name, _, attribute = path.partition(":")
    if name not in known and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own module stands in the working directory
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        kind_of = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise CatalogError(f"{singular(kind)} {name!r}: cannot import {module_name}: {kind_of}{error}.") from error
    for step in attribute.split("."):
        if not hasattr(value, step):
            public = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise CatalogError(f"{singular(kind)} {name!r}: {module_name} has no {attribute!r}.{nearest(step, public)}")
        value = getattr(value, step)
    return value


def split_named(named: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, options) of what a recipe names: 'vllm' or {name: vllm, <options>}."""
    if isinstance(named, str):
        return named, {}
    if not isinstance(named.get("name"), str):
        raise CatalogError(f"{named!r} has no name. Expected a name or {{name: ..., <option>: ...}}.")
    return named["name"], {k: v for k, v in named.items() if k != "name"}


def singular(kind: str) -> str:
    """'algorithms' -> 'algorithm'."""
    return kind[:-1] if kind.endswith("s") else kind


def unwrap(part: Any) -> Any:
    """The function or the object behind a functools.partial."""
    while isinstance(part, functools.partial):
        part = part.func
    return part


def name_of(part: Any) -> str:
    """How a part is called in reports: the function's name, or the class's for an object."""
    inner = unwrap(part)
    return getattr(inner, "__name__", type(inner).__name__)


def inputs_of(part: Any) -> list[str]:
    """The arrays that a part reads: its positional parameters; for an object with memory those of `apply`, less state."""
    inner = unwrap(part)
    if not inspect.isfunction(inner) and hasattr(inner, "apply"):
        inner = inner.apply
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(inner).parameters.values() if p.kind in positional]
    return [n for n in names if n not in ("self", "state")]


def options_of(part: Any) -> dict[str, inspect.Parameter]:
    """The options of a part: its keyword-only parameters (of `__init__` for a class), with their annotations resolved."""
    inner = unwrap(part)
    target = inner.__init__ if inspect.isclass(inner) else inner
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def summary(kind: str, name: str) -> tuple[str, str]:
    """(first line of the docstring, paper) of a catalog row, read without importing torch where that can be helped."""
    doc = inspect.getdoc(get(kind, name)) or ""
    paper = re.search(r"arXiv:\d{4}\.\d{4,5}", doc)
    return doc.split("\n")[0], paper.group(0) if paper else ""
