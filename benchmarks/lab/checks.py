"""Which check stands for which method. Every method of the catalog has a row; a test holds it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.lab.finding import Finding

FINDINGS = Path(__file__).with_name("findings.json")
SEEDS = 8
FAST = 3.0  # seconds of processor time; what needs less is run with every test

CHECKS = {  # method -> module, whose function of the method's name is the check
    "reinforce": "baselines",
    "reinforce_pp": "baselines",
    "remax": "baselines",
    "rloo": "baselines",
    "grpo": "baselines",
    "dr_grpo": "baselines",
    "bnpo": "baselines",
    "opo": "baselines",
    "gdpo": "baselines",
    "maxrl": "baselines",
    "scalerl": "baselines",
    "dapo": "ratio_losses",
    "ppo": "ratio_losses",
    "ppo_max": "ratio_losses",
    "trpo": "ratio_losses",
    "fixpo": "ratio_losses",
    "taypo": "ratio_losses",
    "rec": "ratio_losses",
    "opmd": "ratio_losses",
    "asymre": "ratio_losses",
    "red_drop": "ratio_losses",
    "red_weight": "ratio_losses",
    "mhpo": "ratio_losses",
    "alp": "ratio_losses",
    "gspo": "ratio_losses",
    "cispo": "ratio_losses",
    "sapo": "ratio_losses",
    "luspo": "ratio_losses",
    "gmpo": "ratio_losses",
    "vespo": "ratio_losses",
    "dppo": "ratio_losses",
    "decoupled_ppo": "ratio_losses",
    "tis": "ratio_losses",
    "icepop": "ratio_losses",
    "m2po": "ratio_losses",
    "clip_cov": "entropy",
    "kl_cov": "entropy",
    "empg": "entropy",
    "hapo": "entropy",
    "canon": "structure",
    "adora": "structure",
    "d3s": "structure",
    "aspo": "structure",
    "stratified_grpo": "structure",
    "salt": "structure",
    "pvpo": "structure",
    "blockwise": "structure",
    "partial_pg": "structure",
    "poly_ppo": "sets",
    "dpp_grpo": "sets",
    "passk": "sets",
    "apa": "divergence",
    "awr": "divergence",
    "p3o": "divergence",
    "rebel": "divergence",
    "dpo": "divergence",
    "bradley_terry": "divergence",
    "process_reward": "divergence",
    "dph_rl": "divergence",
    "hnpg": "demonstrations",
    "ahpo": "demonstrations",
    "sft": "demonstrations",
    "fcp": "demonstrations",
}


def check(method: str) -> Callable[[int], Finding]:
    """The check of a method: (number of seeds) -> what was found."""
    return getattr(importlib.import_module(f"benchmarks.lab.{CHECKS[method]}"), method)


def stored() -> dict[str, dict]:
    """What was found last, by method; see Finding, and `cpu_seconds`."""
    return json.loads(FINDINGS.read_text(encoding="utf-8")) if FINDINGS.exists() else {}


def fast() -> list[str]:
    """The methods whose check took less than FAST seconds."""
    return [method for method, row in stored().items() if row["cpu_seconds"] < FAST]
