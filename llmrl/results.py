"""Stored answers judged, without a model: numbers, a file of verdicts, tables, and whether two results differ."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llmrl.completions import digest, resume
from llmrl.config import Named
from llmrl.data.read import Row
from llmrl.errors import LlmrlError
from llmrl.evaluation import Evaluation, Judged, is_right, judge, judged, measured
from llmrl.ops.intervals import Interval, mcnemar, paired
from llmrl.pool import Pool
from llmrl.scoring import Scorer, make_scorers
from llmrl.tracking.jsonl import append_lines, plain, read_lines, write_lines, write_text
from llmrl.tracking.text import is_number, percent
from llmrl.types import Group

KIND = "llmrl/scores@1"


@dataclass(frozen=True)
class Result:
    """One set of scorers over one file of answers."""

    label: str
    verdicts: list[Judged]
    numbers: Evaluation


def judge_stored(groups: Iterable[Group], scorers: Sequence[Named], pool: Pool) -> Result:
    """The answers judged; nothing is written."""
    made = make_scorers(scorers)
    verdicts = [one for group in judge(groups, made, pool) for one in judged(group, made[0].name)]
    return Result(label_of(scorers), verdicts, measured(verdicts))


def judge_into(
    folder: Path, name: str, source: Path, groups: Iterable[Group], scorers: Sequence[Named], pool: Pool
) -> Result:
    """The answers of `source` judged, verdicts kept in folder/scores.jsonl; one that was cut short is gone on with.

    name: of what was measured. Verdicts of other scorers, of another text of a scorer's own file, or of another state of
    `source`, are replaced: judging again takes no model. Groups with an error are judged again.
    """
    path, made = folder / "scores.jsonl", make_scorers(scorers)
    setting = {"scorers": list(scorers), "answers": digest(source), "code": code_of(made)}
    header = {"llmrl": KIND, "name": name, "setting": setting}
    if (old := read_lines(path)) and old[0].get("setting") != plain(header["setting"]):
        path.unlink()
    whole = resume(path, header)
    done = {some[0]["group"]: some for some in whole if not any(failed(row) for row in some)}
    if len(done) < len(whole):
        write_lines(path, [header, *(row for some in done.values() for row in some)])
    names = [field.name for field in fields(Judged)]
    verdicts = {n: [Judged(**{name: row[name] for name in names}) for row in some] for n, some in done.items()}
    left: list[int] = []  # numbers of the groups handed to the scorers, in order

    def missing() -> Iterator[Group]:
        for number, group in enumerate(groups):
            if number not in done:
                left.append(number)
                yield group

    for place, group in enumerate(judge(missing(), made, pool)):
        number = left[place]
        found = judged(group, made[0].name)
        rows = [
            asdict(one) | {"sample": i, "samples": len(found), "group": number, "scores": scores}
            for i, (one, scores) in enumerate(zip(found, map(as_plain, group.scores), strict=True))
        ]
        append_lines(path, rows)
        verdicts[number] = found
    ordered = [one for number in sorted(verdicts) for one in verdicts[number]]
    return Result(label_of(scorers), ordered, measured(ordered))


def failed(row: Row) -> bool:
    """Whether a scorer could not judge a stored verdict's answer."""
    return any(one["error"] for one in row["scores"].values())


def code_of(scorers: Sequence[Scorer]) -> list[str]:
    """The digest of the file that each scorer is defined in; '' without one."""
    files = [getattr(sys.modules.get(one.source.path.partition(":")[0]), "__file__", None) for one in scorers]
    return [digest(Path(file)) if file else "" for file in files]


def as_plain(scores: dict[str, Any]) -> Row:
    return {name: asdict(one) for name, one in scores.items()}


def write_card(folder: Path, numbers: Evaluation, facts: Row) -> Path:
    """results.json: every number beside what it was measured with."""
    values = {k: v for k, v in vars(numbers).items() if k != "records"}
    for key in ("pass_at", "majority_at"):
        values[key] = {k: found._asdict() for k, found in values[key].items()}
    path = folder / "results.json"
    write_text(path, json.dumps(plain(facts | {"numbers": values}), indent=1) + "\n")
    return path


def protocol_of(named: Named) -> str | None:
    """The protocol that a scorer is told to follow, if it is told."""
    return named.get("protocol") if isinstance(named, dict) else None


def with_protocol(scorers: Sequence[Named], protocol: str) -> list[Named]:
    """The scorers under another protocol: the first, and every other that names one."""
    named = [{"name": one} if isinstance(one, str) else dict(one) for one in scorers]
    return [one | {"protocol": protocol} if i == 0 or "protocol" in one else one for i, one in enumerate(named)]


def label_of(scorers: Sequence[Named]) -> str:
    """How a table calls a set of scorers: its protocol, or the first one's name and options."""
    first = scorers[0]
    if isinstance(first, str):
        return first
    options = ", ".join(f"{key}: {value}" for key, value in first.items() if key not in ("name", "weight"))
    return protocol_of(first) or (f"{first['name']} ({options})" if options else first["name"])


def shown(found: Interval) -> str:
    """'41.4 % (38.7 to 44.1)'."""
    return f"{percent(found.mean)} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def sentences(numbers: Evaluation) -> list[str]:
    """The numbers in words, a few lines."""
    if numbers.accuracy is None:
        return [f"nothing could be judged: {numbers.errors:,} errors"]
    found = Interval(numbers.accuracy, numbers.low, numbers.high)
    lines = [f"accuracy {shown(found)}, {numbers.num:,} answers to {numbers.num_prompts:,} prompts"]
    for name, each in (("pass", numbers.pass_at), ("maj", numbers.majority_at)):
        if each:
            lines.append(", ".join(f"{name}@{k} {shown(one)}" for k, one in each.items()))
    parts = []
    if numbers.tokens is not None:
        parts.append(f"{numbers.tokens:,} tokens, {numbers.mean_length:,.0f} an answer")
    if numbers.truncated is not None:
        parts.append(f"{percent(numbers.truncated)} cut by the limit")
    if numbers.unanswered is not None:
        parts.append(f"{percent(numbers.unanswered)} without an answer")
    return [*lines, ", ".join([*parts, f"{numbers.errors:,} errors"])]


def said(result: Result) -> list[str]:
    """The numbers in words, and what went wrong most often."""
    return [*sentences(result.numbers), *complaint(result)]


def complaint(result: Result) -> list[str]:
    """The most frequent error, in words; nothing where there is none."""
    found = Counter(one.error for one in result.verdicts if one.error).most_common(1)
    return [f"{times:,} times: {reason}" for reason, times in found]


def table(results: Sequence[Result]) -> str:
    """One line a set of scorers, with how many verdicts differ from the first line's."""
    last = max(results[0].numbers.majority_at, default=None)
    heads = [
        "scorer",
        "accuracy",
        "95 %",
        "no answer",
        "errors",
        *([f"maj@{last}"] if last else []),
        "not as the first",
    ]
    rows = [heads]
    for one in results:
        numbers = one.numbers
        judged_any = numbers.accuracy is not None
        pairs = zip(one.verdicts, results[0].verdicts, strict=True)
        rows.append(
            [
                one.label,
                percent(numbers.accuracy) if judged_any else "-",
                f"{100 * numbers.low:.1f} to {100 * numbers.high:.1f}" if judged_any else "-",
                "-" if numbers.unanswered is None else percent(numbers.unanswered),
                f"{numbers.errors:,}",
                *([percent(numbers.majority_at[last].mean) if last in numbers.majority_at else "-"] if last else []),
                "" if one is results[0] else f"{sum(is_right(a) != is_right(b) for a, b in pairs):,}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    wrong = [f"{one.label}: {line}" for one in results for line in complaint(one)]
    return "\n".join([*(line.rstrip() for line in lines), *wrong])


def compare(first: Path, second: Path) -> str:
    """Whether two results of the same benchmark differ, by the problems that both hold.

    Each is a folder that `llmrl eval` has written, or one of its folders. Raises LlmrlError.
    """
    a, b = found_below(first), found_below(second)
    both = [name for name in a if name in b]
    if not both:
        raise LlmrlError(
            f"{first} holds scores of {', '.join(a) or 'nothing'}, {second} of {', '.join(b) or 'nothing'}: nothing of "
            "both. Give two folders that `llmrl eval` has written."
        )
    return "\n".join(f"{name}: {difference(a[name], b[name])}" for name in both)


def found_below(folder: Path) -> dict[str, Path]:
    """{what was measured: its scores.jsonl}. LlmrlError where the folder has two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("scores.jsonl")):
        name = verdicts_in(path)[0]["name"]
        if name in found:
            raise LlmrlError(f"{folder} holds two results of {name}: {found[name].parent} and {path.parent}. Name one.")
        found[name] = path
    return found


def verdicts_in(path: Path) -> list[Row]:
    """The header and the rows of a scores.jsonl. LlmrlError where it is none."""
    rows = read_lines(path)
    setting = rows[0].get("setting") if rows else None
    if not isinstance(setting, dict) or "scorers" not in setting or not isinstance(rows[0].get("name"), str):
        raise LlmrlError(f"{path} has no header with name and setting. Judge its answers again.")
    for number, row in enumerate(rows[1:], 2):
        value = row.get("value", "")
        if not isinstance(row.get("prompt_id"), str) or not (value is None or is_number(value)):
            raise LlmrlError(f"{path}: line {number} is no verdict. Remove that line, or judge its answers again.")
    return rows


def difference(first: Path, second: Path) -> str:
    """In words: how far the second's accuracy is above the first's on the same problems, and whether that is chance.

    The interval is of the paired differences, problem by problem. Where every mean is 0 or 1, or the differences have
    no spread, McNemar's exact test decides. Raises LlmrlError where the scorers differ or no problem is in both.
    """
    (head_a, *rows_a), (head_b, *rows_b) = verdicts_in(first), verdicts_in(second)
    if head_a["setting"]["scorers"] != head_b["setting"]["scorers"]:
        raise LlmrlError(f"{first} and {second} were judged by different scorers; their numbers do not compare.")
    a, b = by_prompt(rows_a), by_prompt(rows_b)
    both = [prompt for prompt in a if prompt in b]
    if not both:
        raise LlmrlError(f"{first} and {second} have no problem in common that both could be judged on.")
    means_a, means_b = ([sum(some[p]) / len(some[p]) for p in both] for some in (a, b))
    found = paired(means_a, means_b)
    only_a, only_b = (ahead(*pair) for pair in ((means_a, means_b), (means_b, means_a)))
    chance, test = found.low <= 0 <= found.high, ""
    if {*means_a, *means_b} <= {0.0, 1.0} or found.low == found.high:
        p = mcnemar(only_a, only_b)
        chance, test = p >= 0.05, f", McNemar p = {p:.2g}"
    left = len(a) + len(b) - 2 * len(both)
    verdict = "not distinguishable" if chance else f"the {'second' if found.mean > 0 else 'first'} is better"
    return (
        f"{verdict}. {100 * sum(means_a) / len(both):.1f} % against {100 * sum(means_b) / len(both):.1f} %, difference "
        f"{100 * found.mean:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f}) over {len(both):,} problems; "
        f"the first is ahead on {only_a:,}, the second on {only_b:,}{test}"
        + (f"; {left:,} problems are in one of them only" if left else "")
    )


def ahead(a: Sequence[float], b: Sequence[float]) -> int:
    return sum(x > y for x, y in zip(a, b, strict=True))


def by_prompt(rows: Sequence[Row]) -> dict[str, list[float]]:
    """{prompt: values of its judged answers}."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            found.setdefault(row["prompt_id"], []).append(row["value"])
    return found
