"""llmrl's loop and TRL's trainer over the same prompts: their CPU-seconds a step, and their gradients of one batch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape

Steps = list[dict[str, float]]  # CPU-seconds by part, and the mean length, of each step
EXACT = {"bf16": False, "gradient_checkpointing": False}  # what TRL is set to for the comparison of gradients
# no weight moves: already 1e-6 changes the mean length to a half or to twice within six steps, otherwise on each side
LEARNING_RATE = 1e-12
KV_CACHE_BYTES = 256 << 20  # of vLLM, on both sides


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward of both sides: the share of even token ids, which hardly ever is equal within a group."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def llmrl_loop(shape: Shape, folder: Path, seed: int, engine: str | dict[str, Any] = "transformers") -> Any:
    """A llmrl Loop over the prompts in `folder`."""
    from llmrl.loop import Loop
    from llmrl.pool import Pool
    from llmrl.recipe import resolve
    from llmrl.run import build_stage, first_policy
    from llmrl.training.ranks import Ranks

    sections = {
        "model": {"path": str(folder / "model")},
        "data": {"source": str(folder / "prompts.jsonl"), "shuffle": False, "max_prompt_tokens": shape.longest_prompt},
        "algorithm": {"name": "grpo", "reduce": "token_mean"},
        "rollout": {"engine": engine, "prompts_per_step": shape.prompts_per_step, "group_size": shape.group_size,
                    "max_tokens": shape.max_tokens},
        "training": {"learning_rate": LEARNING_RATE},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(sections))
    recipe, ranks = resolve(folder / "recipe.yaml"), Ranks()
    policy = first_policy(recipe, folder)
    stage = build_stage(recipe, 0, policy, ranks, folder, None, Pool(1), functions=[even_share])
    policy.wrapped = ranks.accelerator.prepare_model(policy.module)
    return Loop(stage, ranks, seed)


def trl_trainer(
    shape: Shape, folder: Path, steps: int, seed: int, options: dict[str, Any], callbacks: tuple = ()
) -> Any:
    """A GRPOTrainer over the prompts in `folder`."""
    if options.get("use_vllm"):
        let_trl_run_vllm_here()
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = options.get("per_device_train_batch_size", GRPOConfig.per_device_train_batch_size)
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=steps, learning_rate=LEARNING_RATE, num_generations=shape.group_size,
        gradient_accumulation_steps=shape.completions // rows,
        max_completion_length=shape.max_tokens, shuffle_dataset=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1, seed=seed, **options,
    )  # fmt: skip
    prompts = load_dataset(
        "json", data_files=str(folder / "prompts.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return GRPOTrainer(str(folder / "model"), even_share, config, prompts, processing_class=tokenizer,
                       callbacks=list(callbacks))  # fmt: skip


def let_trl_run_vllm_here() -> None:
    """TRL's colocated vLLM needs a GPU in three places: its LLM is compiled, takes half of all memory for its cache, and
    is handed weights by `load_weights`, for which vLLM's CPU kernels keep no tensor. Nothing else of TRL is touched.
    """
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
    from functools import partial

    from trl.generation import vllm_generation

    def sync_weights(self: Any) -> None:
        worker = self.llm.llm_engine.model_executor.driver_worker
        worker.reload_weights(weights_iterator=self.model.state_dict().items())
        self.llm.reset_prefix_cache()

    vllm_generation.LLM = partial(vllm_generation.LLM, enforce_eager=True, kv_cache_memory_bytes=KV_CACHE_BYTES)
    vllm_generation.VLLMGeneration.sync_weights = sync_weights


def measure_llmrl(shape: Shape, folder: Path, steps: int, seed: int, options: dict[str, Any]) -> Steps:
    """Metrics are made as in a run."""
    from llmrl.observe import describe

    loop, out = llmrl_loop(shape, folder, seed, **options), []
    time.perf_counter = time.process_time  # the loop's own clock, in CPU-seconds
    for number in range(steps):
        start = time.process_time() + scorers_time(loop.stage.pool)
        done = loop.step(number)
        row = describe(done, [s.name for s in loop.stage.scorers], loop.ranks)
        step = time.process_time() + scorers_time(loop.stage.pool) - start
        train = done.seconds["passes"] + done.seconds["update"]
        out.append(split(step, done.seconds["generate"], train, row["rollout/length"]))
    return out


def scorers_time(pool: Any) -> float:
    """CPU-seconds of the processes that scorers run in, which TRL does not have: they are part of our step."""
    pids = [worker.pid for worker in pool.staff] + ([pool.zygote.pid] if pool.zygote else [])
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def measure_trl(shape: Shape, folder: Path, steps: int, seed: int, options: dict[str, Any]) -> Steps:
    """A step lasts from the end of one to the end of the next, its data and its log included.

    'train' is what remains of the step when preparing the inputs (generation, rewards) and what lies between steps are
    taken away.
    """
    from transformers import TrainerCallback

    spent = {"generate": 0.0, "prepare": 0.0, "step": 0.0}
    out: Steps = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.process_time()

        def on_step_end(self, *_, **__):
            now = time.process_time()
            prepare, generate = spent["prepare"], spent["generate"]
            out.append(split(now - spent["step"], generate, now - self.began - prepare, 0.0))
            spent.update(generate=0.0, prepare=0.0, step=now)

        def on_log(self, args, state, control, logs, **_):
            if "completions/mean_length" in logs:
                out[-1]["length"] = logs["completions/mean_length"]

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            answer = function(*args, **kwargs)
            spent[name] += time.process_time() - start
            return answer

        return call

    trainer = trl_trainer(shape, folder, steps, seed, options, (Watch(),))
    trainer._generate = timed("generate", trainer._generate)
    trainer._prepare_inputs = timed("prepare", trainer._prepare_inputs)
    spent["step"] = time.process_time()
    trainer.train()
    return out


def split(step: float, generate: float, train: float, length: float) -> dict[str, float]:
    return {"step": step, "generate": generate, "train": train, "rest": step - generate - train, "length": length}


def gradient_difference(shape: Shape, folder: Path) -> float:
    """Largest difference of the two gradients on one batch of token ids and advantages, over the largest component."""
    import torch

    from llmrl.clock import Clock
    from llmrl.collect import Collector
    from llmrl.policy.forward import padded
    from llmrl.training.assemble import ragged
    from llmrl.training.credit import assign_credit

    loop = llmrl_loop(shape, folder, seed=0)
    batch = Collector(loop.stage, loop.ranks, loop.seed_of).collect(0, Clock())[-1]
    assign_credit(batch, loop.stage.algorithm, loop.ranks)
    updater, found = loop.stage.updater, {}
    updater.settings = type(updater.settings)(**{**vars(updater.settings), "max_grad_norm": 1e9})
    updater.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in updater.policy.model.named_parameters()})
    )
    updater.update(batch, loop.stage.algorithm, learning_rate=0.0, seed=0)

    trainer = trl_trainer(shape, folder, 1, 0, EXACT)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer.model.train()
    prompt_ids, prompt_mask = padded([s.training for s in batch.samples], torch.device("cpu"), left=True)
    mask = batch.arrays["loss_mask"]
    loss = trainer._compute_loss(trainer.model, {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_mask": mask.long(),
        "completion_ids": ragged([s.response for s in batch.samples], mask.shape[1], torch.long),
        "advantages": batch.arrays["advantages"][:, 0], "num_items_in_batch": mask.sum(),
    })  # fmt: skip
    loss.backward()
    theirs = {n: p.grad for n, p in trainer.model.named_parameters()}
    largest = max(g.abs().max().item() for g in theirs.values())
    return max((found[n] - g).abs().max().item() for n, g in theirs.items()) / largest
