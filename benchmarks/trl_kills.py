"""kill -9 on TRL's GRPOTrainer at random moments and inside its checkpoints; the same run is then resumed as its user would.

    python benchmarks/trl_kills.py [--kills 15] [--seed 0]

As hard on TRL as tests/integration/test_kills.py is on llmrl: a tiny model on one CPU thread, two optimizer steps a batch of
rollouts, a checkpoint after each batch or after each step, and `resume_from_checkpoint=True`, by which TRL takes the newest
checkpoint folder. Equal means the same bytes of the final weights as the run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from llmrl.data.tasks import addition
from llmrl.policy.tiny import tiny
from llmrl.quiet import quiet_libraries

STEPS = 4
SITUATIONS = {  # (steps between checkpoints, whether it dies while one is written)
    "at any time, a checkpoint after each batch": (2, False),
    "at any time, a checkpoint after each optimizer step": (1, False),
    "while a checkpoint is written": (2, True),
}


def varied(completion_ids: list, **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def train(model: str, out: Path, save_every: int = 2) -> None:
    """The run; goes on from the newest checkpoint folder where there is one."""
    prompts = [{"prompt": row["prompt"]} for row in addition(size=64, seed=0)]
    config = GRPOConfig(
        output_dir=str(out),
        max_steps=STEPS,
        save_steps=save_every,
        save_total_limit=2,
        per_device_train_batch_size=16,
        num_generations=4,
        num_iterations=2,
        max_completion_length=8,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=varied,
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train(resume_from_checkpoint=bool(out.exists() and get_last_checkpoint(str(out))) or None)
    trainer.save_model(str(out / "final"))


def forked(
    model: str, out: Path, log: Path, save_every: int, kill_after: float | None = None, writes: int | None = None
) -> int:
    """Exit status of a child that trains. kill_after: seconds; writes: it dies after so many files of checkpoints."""
    pid = os.fork()
    if pid == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 1
        try:
            if writes is not None:
                mortal_writes(writes)
            train(model, out, save_every)
            status = 0
        except BaseException:  # noqa: BLE001 - told in the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if kill_after is not None and time.monotonic() - began >= kill_after:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def mortal_writes(count: int) -> None:
    """SIGKILL to this process after `count` calls of the functions that write a checkpoint's large files."""
    import safetensors.torch
    import transformers.modeling_utils
    import transformers.trainer

    made = [0]

    def counted(write):
        def wrapped(*arguments, **options):
            out = write(*arguments, **options)
            made[0] += 1
            if made[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return out

        return wrapped

    torch.save = counted(torch.save)
    safetensors.torch.save_file = counted(safetensors.torch.save_file)
    transformers.modeling_utils.safe_save_file = safetensors.torch.save_file


def digest(out: Path) -> str:
    return hashlib.sha256((out / "final" / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=15, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    base = Path(tempfile.mkdtemp(prefix="trl-kills-"))
    model = tiny(str(base / "model"), hidden=32, layers=1, heads=2, kv_heads=1, feed_forward=64)
    train(model, base / "warm-up")  # what libraries load by and by is loaded before the first fork
    digests, seconds = set(), 0.0
    for save_every in (2, 1, 2):
        out, began = base / f"oracle-{len(digests)}-{save_every}", time.monotonic()
        shutil.rmtree(out, ignore_errors=True)
        if forked(model, out, base / "oracle.log", save_every):
            sys.exit((base / "oracle.log").read_text()[-2000:])
        seconds = time.monotonic() - began
        digests.add(digest(out))
    print(f"undisturbed runs that differ: {len(digests) - 1} of 3", flush=True)
    rng, wanted = random.Random(asked.seed), digests.pop()
    for situation, (save_every, inside) in SITUATIONS.items():
        killed = resumed = equal = 0
        why: Counter[str] = Counter()
        for number in range(asked.kills):
            out, log = base / f"trial-{number}", base / f"trial-{number}.log"
            shutil.rmtree(out, ignore_errors=True)
            how = {"writes": rng.randint(1, 8)} if inside else {"kill_after": rng.random() * seconds}
            if not os.WIFSIGNALED(forked(model, out, log, save_every, **how)):
                continue  # it was done before
            killed += 1
            if forked(model, out, log, save_every):
                why[(log.read_text().strip().splitlines() or ["?"])[-1].replace(str(out), "")] += 1
                continue
            resumed += 1
            equal += digest(out) == wanted
        print(f"{situation}: {killed} kills, resumed {resumed}, equal {equal}", flush=True)
        for line, times in why.most_common(3):
            print(f"  {times} times {line}")
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
