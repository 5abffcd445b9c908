"""The run's own sections: every key of a recipe but the options of parts, which their signatures declare.

Values are strict: a string is not a number and a number is not a string. Light to import: no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # names a folder of the run
Named = str | dict[str, Any]  # a catalog name, or {name: ..., <option>: ...}


class Section(BaseModel):
    """A section of a recipe: unknown keys are refused, values are never changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Lora(Section):
    """Low-rank adapters by peft; the reference policy is then the model with the adapters off."""

    rank: Positive = 16
    alpha: AboveZero = 32.0
    targets: str | list[str] = "all-linear"


class Model(Section):
    """Which model is trained. Exactly one of `path` and `make`."""

    path: str | None = Field(None, description="folder or hub id of any causal language model")
    make: Named | None = Field(None, description="a catalog model made on the spot, such as tiny")
    revision: str | None = None
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward; master weights are always fp32")
    attention: str = "sdpa"
    lora: Lora | None = None
    shared_prompt: Literal["auto", "off"] = Field(
        "auto", description="forward a group's prompt once where that is exact"
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="compute activations again in the backward pass, for a fifth to a third more time; auto: where keeping "
        "those of a micro-batch would take more than 30 % of the free memory",
    )
    added_tokens: list[str] = Field([], description="special tokens added to the tokenizer and the embeddings")
    verdict_tokens: list[str] = Field(
        [], description="tokens for right and wrong whose logits' difference is the score; without: a head of its own"
    )


class Data(Section):
    """Where prompts, demonstrations or pairs come from, and how a row becomes a prompt."""

    source: Named = Field(
        description="hub id, local .jsonl/.json/.csv/.parquet file, catalog source, or module:attribute"
    )
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Literal["auto", "prompt", "demonstration", "pairs", "feedback", "hh", "steps"] = "auto"
    columns: dict[str, str] = Field({}, description="our name → the data's column: prompt, completion, reference, ...")
    system: str | None = Field(None, description="system turn put before every prompt")
    user: str | None = Field(None, description="makes a user turn out of columns: '{question} Answer briefly.'")
    step_tag: Annotated[str, Field(min_length=1)] = Field(
        "\n", description="written after every step of step data; its last token carries the step's label"
    )
    tool_call: str = Field(
        "<tool_call>", description="opens a tool call in an answer, for methods that count or place them"
    )
    blocks: list[Name] = Field(
        [], description="tags of an answer's segments in order, such as [solution, confidence]; scorer k judges block k"
    )
    signature: Literal["last_number", "last_line", "text"] = Field(
        "last_number", description="what of an answer says that two are the same, for methods that reward difference"
    )
    limit: Positive | None = Field(None, description="first rows only")
    max_prompt_tokens: Positive = Field(1024, description="longer prompts are refused at load and counted")
    shuffle: bool = True


class Rollout(Section):
    """Who writes the answers, and how."""

    engine: Named = "transformers"
    prompts_per_step: Positive = 16
    group_size: Positive = Field(8, description="answers to each prompt; replay takes what is stored")
    max_tokens: Positive = 256
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Natural = 0
    sync: Literal["every_step", "never"] = Field(
        "every_step", description="never: sample from the stage's first weights"
    )
    staleness: Natural = Field(
        0,
        description="steps that sampling may be ahead of training, by an engine with weights of its own; 0: each step waits for "
        "its answers",
    )


class Scoring(Section):
    """What becomes of a rollout that a scorer could not judge."""

    on_error: Literal["drop", "retry", "fail"] = "drop"
    max_error_share: Share = Field(0.5, description="stop the run when more rollouts of a step than this have errors")
    timeout: AboveZero = Field(
        60.0, description="seconds for one call of a scorer that has no limit of its own; a late one is an error"
    )
    workers: Positive | None = Field(
        None, description="processes that scorers run in; None: the CPUs of this process, at most 8"
    )


class Training(Section):
    """The optimizer and the sizes of what goes through the model at once."""

    steps: Positive | None = Field(None, description="rollout batches; None: one pass over the data")
    learning_rate: AboveZero = 1e-6
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: Natural = 0
    final_share: Share = Field(0.0, description="share of the learning rate left at the end of linear and cosine")
    weight_decay: NotNegative = 0.0
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.95], min_length=2, max_length=2)
    max_grad_norm: AboveZero = 1.0
    train_only: list[str] = Field(
        [],
        description="pieces of names, such as [value_head]: parameters with none of them in their name stay as they are",
    )
    tokens_per_micro_batch: Positive = Field(
        8192, description="tokens forwarded at once; the result does not depend on it"
    )
    max_logprob_gap: AboveZero | None = Field(
        None,
        description="stop when the engine's and the trainer's log-probabilities differ by more than this in the mean; "
        "None: 0.02 in fp32, 0.2 in bf16",
    )
    max_skipped: Positive = Field(
        3, description="stop when so many optimizer steps in a row were skipped because the gradient was not finite"
    )
    save_every: Natural | None = Field(
        None,
        description="steps between checkpoints; 0: only at the end of a stage; None: every 30 s, less often where writing one "
        "would take more than a twentieth of the time",
    )
    keep_checkpoints: Positive = 2


class Evaluation(Section):
    """One held-out measurement, under its own name. `benchmark` or `data` with `scorers`."""

    benchmark: str | None = None
    data: Data | None = Field(None, description="with a benchmark: laid over its own, such as a local file as source")
    scorers: list[Named] = []
    every: Natural = Field(0, description="steps between measurements; 0: before and after the stage")
    at_start: bool = True
    limit: Positive | None = None
    num_samples: Positive = Field(1, description="answers to each prompt")
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Natural = 0
    max_tokens: Positive | None = None
    feedback: str | None = Field(None, description="condition to evaluate under, for feedback-conditioned policies")


def without_nulls(value: Any) -> Any:
    """A mapping less what was set to null."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


# `evaluation.x: null` switches off what a base recipe measures
Evaluations = Annotated[dict[Name, Evaluation], BeforeValidator(without_nulls)]


class Tracking(Section):
    """What is shown and kept."""

    trackers: list[str] = Field([], description="by accelerate's names: tensorboard, wandb, trackio, ...")
    panel: Literal["auto", "plain", "off"] = "auto"
    rollouts_every: Natural = Field(1, description="steps between stored rollouts; 0: none")


class Stage(Section):
    """What a stage of the run changes: any of these sections, laid over the recipe's own."""

    name: Name
    data: dict[str, Any] = {}
    extra_data: dict[str, Any] = {}
    algorithm: dict[str, Any] = {}
    scorers: list[Named] | None = None
    scoring: dict[str, Any] = {}
    rollout: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Run(Section):
    """A whole recipe."""

    name: str | None = Field(None, description="folder of the run below `out`; None: the recipe's file name")
    out: str = "runs"
    seed: int = 0
    profile: bool = Field(
        False, description="watch a few steps: profile/ in the run's folder says where their time went"
    )
    resume: str = Field("auto", description="auto: the newest valid checkpoint; never; or a checkpoint folder")
    parallel: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"] = Field(
        "auto",
        description="what several processes share: ddp: nothing; fsdp: weights, gradients and moments; zero1, zero2, zero3: "
        "DeepSpeed's stages; auto: as `accelerate launch` was told, else ddp",
    )
    rank_timeout: AboveZero = Field(
        1800.0, description="seconds that a process waits for the others; then it takes them for dead, and the run ends"
    )
    grace: AboveZero = Field(
        25.0, description="seconds from SIGTERM to the end of the process; a step that takes longer is made again"
    )
    model: Model
    data: Data | None = None
    extra_data: Data | None = Field(
        None, description="demonstrations beside the rollouts, for methods that mix the two"
    )
    algorithm: dict[str, Any] = {}
    scorers: list[Named] = []
    scoring: Scoring = Scoring()
    rollout: Rollout = Rollout()
    training: Training = Training()
    evaluation: Evaluations = {}
    tracking: Tracking = Tracking()
    stages: list[Stage] = []
