"""Where a step's time goes: some steps of a stage watched, with a trace, the heaviest operators and functions.

Of the steps that are watched the first are only timed, one runs under torch.profiler and the last under cProfile: what
an instrument costs is in no other's numbers. A stage of fewer steps gives one step several instruments.
"""

from __future__ import annotations

import contextlib
import cProfile
import itertools
import pstats
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from llmrl.clock import watched
from llmrl.observe import Collected

SKIPPED = 2  # steps that warm up: caches, checks that run once, lazily loaded code
WATCHED = 5  # steps after them: three timed, one traced, one with the functions of Python
HEAVIEST = 15  # operators and functions listed
ROOT = "step"

Seconds = dict[tuple[str, ...], float]  # by names of spans from the outermost on; (): the whole step
Step = Callable[[int], Collected]


@dataclass(frozen=True)
class Plan:
    """Which steps get which instrument, counted from the first step of this process."""

    timed: range
    traced: int
    functions: int


def plan(steps: int) -> Plan:
    """What is watched of so many steps, at least 1."""
    first = min(SKIPPED, steps - 1)
    last = min(first + WATCHED, steps) - 1
    traced = max(last - 1, min(first + 1, last))
    return Plan(range(first, max(traced, first + 1)), traced, last)


@dataclass
class Spans:
    """Opens spans: each is labelled in a trace, and its time is added up. synchronise: wait for the GPU at its ends."""

    synchronise: bool
    seconds: Seconds = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # beside the step, not a part of it
            yield
            return
        self.opened.append(name)
        path = tuple(self.opened[1:])
        start = self.now()
        try:
            with record_function("/".join(path) or ROOT):
                yield
        finally:
            self.seconds[path] = self.seconds.get(path, 0.0) + self.now() - start
            self.opened.pop()

    def now(self) -> float:
        if self.synchronise:
            torch.cuda.synchronize()
        return time.perf_counter()


def profiled(step: Step, steps: int, folder: Path, rank: int, say: Callable[[str], None]) -> Step:
    """The step function of a stage that has `steps` of them to go, some of which are watched; the results are the same.

    After the last of them <folder>/trace.json.gz is there for Perfetto or chrome://tracing, and summary.txt, which is
    also said; of other ranks than 0 with their rank in the file's name.
    """
    if steps < 1:
        return step
    chosen, count, seconds, tokens = plan(steps), itertools.count(), {}, {}
    suffix = f"-rank{rank}" if rank else ""
    operators = functions = ""

    def watch(number: int) -> Collected:
        nonlocal operators, functions
        place = next(count)
        timed, traced, last = place in chosen.timed, place == chosen.traced, place == chosen.functions
        if not (timed or traced or last):
            return step(number)
        if place == chosen.timed.start and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        spans, python = Spans(synchronise=timed and torch.cuda.is_available()), cProfile.Profile()
        with tracer() if traced else contextlib.nullcontext() as trace, watched(spans):
            with spans(ROOT):
                done = python.runcall(step, number) if last else step(number)
        if timed:
            add(seconds, spans.seconds)
            add(tokens, counted(done))
        if traced:
            folder.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(folder / f"trace{suffix}.json.gz"))
            operators = heaviest_operators(trace)
        if last:
            functions = heaviest_functions(python)
            text = summary(seconds, tokens, len(chosen.timed), operators, functions)
            (folder / f"summary{suffix}.txt").write_text(text, encoding="utf-8")
            say(f"{text}\nprofile: {folder}")
        return done

    return watch


def tracer() -> profile:
    return profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()])


def add(total: dict[Any, float], more: dict[Any, float]) -> None:
    for key, number in more.items():
        total[key] = total.get(key, 0.0) + number


def counted(done: Collected) -> dict[str, float]:
    """Tokens of a step: 'prompts', each once; 'generated'; 'trained', those that count in the loss."""
    return {
        "prompts": sum(len(group.prompt.ids) for group in done.groups),
        "generated": sum(len(rollout.ids) for group in done.groups for rollout in group.rollouts),
        "trained": int(done.batch.counted.sum()),
    }


def summary(seconds: Seconds, tokens: dict[str, float], steps: int, operators: str, functions: str) -> str:
    """The parts of a step, in seconds of a step, percent and tokens a second; the peak of memory; what weighs most."""
    whole = seconds[()]
    head = f"one of {steps} timed step{'s' * (steps > 1)}"
    lines = [f"{head:<28}   seconds  percent  tokens/s"]
    for depth, name, spent, rate in parts(seconds, tokens):
        shown = f"{rate:10,.0f}" if rate is not None else ""
        lines.append(f"{'  ' * depth + name:<28} {spent / steps:9.4f} {100 * spent / whole:8.1f}{shown}")
    return "\n".join([*lines, "", memory(), "", operators, "", functions, ""])


def parts(seconds: Seconds, tokens: dict[str, float]) -> Iterator[tuple[int, str, float, float | None]]:
    """(depth, name, seconds, tokens a second) of the step, of its parts in the order they were first left, and of what
    is in none of them.

    Tokens: of the prompts for prefill, generated for the rest of generating and for scoring, trained for the passes and
    the update; none for the optimizer and for sync, whose work does not depend on them.
    """

    def below(path: tuple[str, ...]) -> Iterator[tuple[int, str, float, float | None]]:
        spent = seconds[path]
        yield len(path), path[-1] if path else ROOT, spent, rate(path, spent)
        inside = [other for other in seconds if other and other[:-1] == path]
        for other in inside:
            yield from below(other)
        if inside:
            yield len(path) + 1, "rest", spent - sum(seconds[other] for other in inside), None

    def rate(path: tuple[str, ...], spent: float) -> float | None:
        if not path or path[-1] in ("sync", "optimizer"):
            return None
        kind = "trained" if path[0] in ("passes", "update") else "prompts" if path[-1] == "prefill" else "generated"
        return tokens[kind] / max(spent, 1e-9)

    yield from below(())


def memory() -> str:
    """Peaks: of this process since it began, and of the GPU during the watched steps."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    text = f"peak memory: {resident:,.0f} MiB resident since the start of the process"
    if torch.cuda.is_available():
        held, reserved = torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20
        text += f"; on the GPU {held:,.0f} MiB held, {reserved:,.0f} MiB reserved in these steps"
    return text


def heaviest_operators(trace: profile) -> str:
    """Operators by their own time: on the GPU where there is one, else on the CPU."""
    found = [event for event in trace.key_averages() if not event.is_user_annotation]
    gpu = torch.cuda.is_available()
    own = {event.key: event.self_device_time_total if gpu else event.self_cpu_time_total for event in found}
    total = max(sum(own.values()), 1e-9)
    lines = [f"operators of one traced step, own time on the {'GPU' if gpu else 'CPU'}    seconds  percent    calls"]
    for event in sorted(found, key=lambda event: -own[event.key])[:HEAVIEST]:
        mine = own[event.key]
        lines.append(f"{event.key[:52]:<52} {mine / 1e6:9.4f} {100 * mine / total:8.1f} {event.count:8,}")
    return "\n".join(lines)


def heaviest_functions(python: cProfile.Profile) -> str:
    """Python functions, and what they call that is none, by their own time."""
    found = pstats.Stats(python)
    heaviest = sorted(found.stats.items(), key=lambda item: -item[1][2])[:HEAVIEST]
    total = max(found.total_tt, 1e-9)
    lines = ["functions of another step, under cProfile, own time     seconds  percent    calls"]
    for (file, line, name), (_, calls, own, *_) in heaviest:
        where = f"{'/'.join(Path(file).parts[-2:])}:{line} {name}" if line else name
        lines.append(f"{where[:52]:<52} {own:9.4f} {100 * own / total:8.1f} {calls:8,}")
    return "\n".join(lines)
