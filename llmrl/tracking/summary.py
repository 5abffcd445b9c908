"""What a finished run prints last: what it reached, where its report is, what to try next."""

from __future__ import annotations

from llmrl.tracking.folder import Row, RunFolder
from llmrl.tracking.text import duration


def summary(folder: RunFolder) -> str:
    """Each evaluation before and after its last stage with intervals, the report, and three commands."""
    rows = folder.metrics()
    lines = [""]
    parts = [key.split("/") for row in rows for key in row]
    names = dict.fromkeys(key[1] for key in parts if key[0] == "eval" and key[-1] == "accuracy")
    for name in names:
        measured = [row for row in rows if row.get(f"eval/{name}/accuracy") is not None]
        last = [row for row in measured if row["stage"] == measured[-1]["stage"]]
        before = f"{shown(last[0], name)} → " if len(last) > 1 else ""
        lines.append(f"{name}: accuracy {before}{shown(last[-1], name)}")
    seconds = sum(row.get("time/step") or 0.0 for row in rows)
    lines += [
        f"{sum('time/step' in row for row in rows):,} steps in {duration(seconds)}, evaluations and set-up aside",
        "",
        f"report, a page to open in any browser:  {folder.path / 'report.html'}",
        "Three things to try next:",
        f"  llmrl eval {folder.path}                    measure the trained model again",
        "  llmrl show gsm8k_grpo                      a recipe for real data, and what each key does",
        "  llmrl train quickstart seed=1 stages.grpo.algorithm.clip_high=0.28   the demo with another setting",
    ]
    return "\n".join(lines)


def shown(row: Row, name: str) -> str:
    """'88.3 % (84.1 to 91.5)', or the plain share where there is no interval."""
    accuracy, low, high = (row.get(f"eval/{name}/{key}") for key in ("accuracy", "low", "high"))
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * accuracy:.1f} %{interval}"
