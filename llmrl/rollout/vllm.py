"""vLLM inside the trainer's process: weights go over in memory, token ids and log-probabilities come back.

One engine at a time in a process. Under torch.distributed every rank builds its own (or, with tensor_parallel, its
share of one) on the caller's process group, all ranks at the same time. Without a process group vLLM makes one of its
own, of world size 1, which `close` takes away again: initialise torch.distributed before the engine, never after.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed

from llmrl.errors import RolloutError
from llmrl.rollout.checks import checked, next_logprobs, probe_ids, refuse_gap, refuse_impossible, spread
from llmrl.rollout.draw import uniforms
from llmrl.rollout.engine import Context, Finished, Weights
from llmrl.rollout.tempering import REQUEST, Tempering, processor, tempered
from llmrl.rollout.vllm_draw import Draws
from llmrl.rollout.vllm_process import (
    caller_state,
    destroy_world_of_vllm,
    launcher_variables,
    prepare_environment,
    shared_memory_names,
    start_errors,
)
from llmrl.serving.weights import load_in_place
from llmrl.types import Prompt, Rollout, Sampling

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CPU_KV_CACHE_MEGABYTES = 256  # vLLM's own default is a share of all memory
STEPS_BETWEEN = 8  # of vLLM, after which the caller is let in
Request = tuple[str, tuple[int, ...], int]  # name and ids of a prompt, its seed


class VllmEngine:
    """Rollouts by vLLM, whose weights always come from the policy, never from its folder.

    Every sync ends with a probe: a few tokens, whose log-probabilities must be the policy's own.
    Raises RolloutError when they are not, for a setting that vLLM would change in silence, and for any answer that is
    not what was asked for.
    """

    own_weights = True
    in_step = "tensor_parallel"

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
        self.loaded: Weights | None = None  # the policy whose weights are in here
        self.shares_process_group = torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if self.shares_process_group else 1
        if ranks % tensor_parallel:
            raise RolloutError(
                f"tensor_parallel is {tensor_parallel}, but {ranks} processes are running; it has to divide them. "
                f"Start with `torchrun --nproc_per_node {tensor_parallel}` or set rollout.engine.tensor_parallel: 1."
            )
        prepare_environment(context.per_token)
        with caller_state(), launcher_variables(), start_errors(context.policy.path):
            from vllm import LLM
            from vllm.platforms import current_platform

            self.on_cpu = current_platform.is_cpu()
            if kv_cache_megabytes is None and self.on_cpu:
                kv_cache_megabytes = CPU_KV_CACHE_MEGABYTES
            names = shared_memory_names if self.on_cpu and tensor_parallel > 1 else nullcontext
            with names():
                self.llm: Any = LLM(
                    str(context.policy.path),
                    skip_tokenizer_init=True,
                    trust_remote_code=False,
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
                    # a prompt read in pieces would make vLLM turn seeded generators back, which those of a CPU cannot
                    enable_chunked_prefill=False if self.on_cpu else None,
                    disable_log_stats=True,
                    seed=0,
                )
        self.draws = Draws(self._worker.model_runner.sampler) if self.on_cpu else None
        try:
            self.sync(context.policy, 0)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        num_samples: int,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """See `llmrl.rollout.engine.Engine`. One request a prompt; top_k 0 is off in vLLM too.

        On a CPU the tokens are those of the transformers engine, but where rounding tips one over.
        """
        if sampling.varies and not self.context.per_token:
            raise RolloutError(
                "the sampling sets a temperature for each token, but this engine was built without per_token in its "
                "Context: vLLM takes its logits processors at the start."
            )
        refuse_impossible(prompts, sampling, self.max_model_len)
        asked = [(prompt.id, prompt.ids, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        start, requests = 0, asked
        if self.tensor_parallel > 1:
            start, requests = _of_all_ranks(asked)
        mine = range(start, start + len(asked))

        def tell(ended: dict[int, list[Rollout]]) -> None:
            if finished is not None:
                finished({place - start: rollouts for place, rollouts in ended.items() if place in mine})

        answers = self._ask(requests, sampling, num_samples, tell)
        return [answers[place] for place in mine]

    def sync(self, policy: Weights, version: int) -> None:
        """Load the weights in place, one after the other, and forget what was computed with the old ones.

        Of a policy that was loaded before, what training cannot have changed stays: with adapters, all but the matrices
        that have one and their neighbours. Raises RolloutError when the engine then does not give the policy's own
        log-probabilities.
        """
        weights = policy.named_weights()
        if policy is self.loaded:
            changed = {_block(name) for name in policy.trained_names()}
            weights = (pair for pair in weights if _block(pair[0]) in changed)
        self.loaded = None
        load_in_place(self._worker, weights)
        if not self.llm.reset_prefix_cache():
            raise RolloutError("vLLM kept its prefix cache after a weight update: a request is still running. Restart.")
        self.version = version
        self._probe(policy)
        self.loaded = policy

    def close(self) -> None:
        """Free weights, cache and vLLM's process groups; a process group that was there before stays."""
        if self.llm is None:
            return
        from vllm.distributed import parallel_state

        destroy_all = parallel_state.destroy_distributed_environment
        if self.shares_process_group:
            parallel_state.destroy_distributed_environment = destroy_world_of_vllm  # else torch's goes with it
        try:
            self.llm.llm_engine.engine_core.shutdown()
        finally:
            parallel_state.destroy_distributed_environment = destroy_all
        self.llm = None
        gc.collect()

    @property
    def _worker(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker

    def _ask(
        self, requests: list[Request], sampling: Sampling, num_samples: int, finished: Finished
    ) -> dict[int, list[Rollout]]:
        """The rollouts of each request, by its place."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not requests:
            return {}
        asked = num_samples if sampling.temperature > 0 else 1  # vLLM refuses several samples that are all the same
        if self.draws is not None:
            self.draws.begin(uniforms([seed for _, _, seed in requests], num_samples, sampling.max_tokens))
            first_seeds = [place * num_samples for place in range(len(requests))]
        else:
            first_seeds = [spread(seed) for _, _, seed in requests]
        params = [
            SamplingParams(
                n=asked,
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
                seed=first_seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={REQUEST: place} if sampling.varies else None,
            )
            for place, first_seed in enumerate(first_seeds)
        ]
        if sampling.varies:
            self.tempering.begin(sampling.per_token)
        rollouts: dict[int, list[Rollout]] = {}
        for outputs in self._run([ids for _, ids, _ in requests], params):
            ended = {}
            for place, output in outputs.items():
                name, answers = requests[place][0], output.outputs
                if len(answers) != asked:
                    raise RolloutError(f"prompt {name}: vLLM gave {len(answers)} answers, asked for {asked}.")
                ones = [_rollout(name, answer, self.context.stop_ids, self.version) for answer in answers]
                ended[place] = ones * (num_samples // asked)
            rollouts |= ended
            if not sampling.varies:  # their temperatures are known at the end
                finished(ended)
        if len(rollouts) != len(requests):
            raise RolloutError(f"vLLM answered {len(rollouts)} of {len(requests)} prompts. Look at its log above.")
        if sampling.varies:
            found = self.tempering.end()
            for place, (name, _, _) in enumerate(requests):
                seeds = range(first_seeds[place], first_seeds[place] + num_samples)
                known = [found.get((place, seed), {}) for seed in seeds]
                rollouts[place] = [tempered(r, k, name) for r, k in zip(rollouts[place], known, strict=True)]
        return rollouts

    def _run(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> Iterator[dict[int, Any]]:
        """vLLM's outputs of the prompts that ended since, by place, every few steps; none are left when it is given up."""
        engine, places = self.llm.llm_engine, {}
        try:
            with caller_state():
                for place, (ids, how) in enumerate(zip(prompts, params, strict=True)):
                    name = str(next(self.llm.request_counter))
                    engine.add_request(name, {"prompt_token_ids": list(ids)}, how)
                    places[name] = place
            while engine.has_unfinished_requests():
                ended: dict[int, Any] = {}
                with caller_state():
                    for _ in range(STEPS_BETWEEN):
                        ended |= {places[output.request_id]: output for output in engine.step() if output.finished}
                        if ended or not engine.has_unfinished_requests():
                            break
                yield ended
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(list(places))

    def _probe(self, policy: Weights) -> None:
        """Raise RolloutError unless vLLM gives the policy's own log-probabilities to a prompt and the token after it."""
        from vllm import SamplingParams

        prompt = probe_ids(self.context)
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            flat_logprobs=True,
            logprobs=0,
            prompt_logprobs=0,
        )
        (output,) = [output for outputs in self._run([prompt], [params]) for output in outputs.values()]
        (answer,) = output.outputs
        ids = [*prompt, *answer.token_ids]
        expected = next_logprobs(policy, ids, self.context)[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        found = [*output.prompt_logprobs.logprobs, *answer.logprobs.logprobs]
        refuse_gap(expected, found, policy, self.context.precision)


def _block(name: str) -> str:
    """The module around that of a weight. vLLM fuses matrices of one block, such as q, k and v, and loads them together.

    On a CPU half of a fused matrix would come out of memory that nobody has written to.
    """
    return name.rsplit(".", 2)[0]


def _rollout(name: str, answer: Any, stop_ids: Sequence[int], version: int) -> Rollout:
    """One checked Rollout out of a vLLM CompletionOutput. Raises RolloutError."""
    ids, logprobs = tuple(answer.token_ids), tuple(answer.logprobs.logprobs)
    if len(ids) == len(logprobs) and list(answer.logprobs.token_ids) != list(ids):
        raise RolloutError(f"prompt {name}: vLLM returned log-probs of other tokens than it sampled.")
    return checked(name, ids, logprobs, answer.finish_reason, stop_ids, version)


def _of_all_ranks(asked: list[Request]) -> tuple[int, list[Request]]:
    """(place of this rank's requests, the requests of all ranks that share the weights): they have to run in step."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    gathered: list[list[Request]] = [[] for _ in range(group.world_size)]
    torch.distributed.all_gather_object(gathered, asked, group=group.cpu_group)
    start = sum(len(part) for part in gathered[: group.rank_in_group])
    return start, [request for part in gathered for request in part]
