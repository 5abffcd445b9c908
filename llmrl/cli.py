"""The llmrl command. Parsing is light; everything that runs is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from llmrl.errors import LlmrlError, RecipeError, nearest
from llmrl.redaction import Guarded
from llmrl.tracking.text import plain_text


class CommandParser(argparse.ArgumentParser):
    """One command; where it takes overrides, its help lists the keys of a recipe, read only then."""

    def __init__(self, *, overrides: bool = False, **options):
        super().__init__(allow_abbrev=False, **options)
        self.overrides = overrides

    def format_help(self) -> str:
        if not self.overrides:
            return super().format_help()
        from llmrl.commands import recipe_keys

        return f"{super().format_help()}\n{recipe_keys()}"


def parser() -> CommandParser:
    """The arguments of every command. What a command with overrides does not know is one."""
    top = CommandParser(prog="llmrl", description="Post-train language models.", epilog="More: llmrl COMMAND --help")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, overrides: bool = False, recipe: bool = False) -> CommandParser:
        made = commands.add_parser(name, help=text, description=text, overrides=overrides)
        made.set_defaults(takes_overrides=overrides)
        if recipe:
            made.add_argument("recipe", help="a file, or a name below recipes/; overrides come after it")
        return made

    train = command("train", "train by a recipe", overrides=True, recipe=True)
    train.add_argument("--num-processes", type=int, default=1, metavar="N", help="data-parallel processes")
    evaluate = command("eval", "measure a model or a run; or compare: llmrl eval compare FOLDER FOLDER", overrides=True)
    evaluate.add_argument("target", metavar="MODEL_OR_RUN", help="model folder or hub id, or the folder of a run")
    evaluate.add_argument("--bench", action="append", default=[], metavar="NAMES", help="benchmarks: gsm8k,math500")
    evaluate.add_argument("--out", metavar="FOLDER", help="where answers and results go; default: a folder of evals/")
    compare = command(
        "compare", "train recipes with the same seeds, side by side, and say what differs", overrides=True
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="two or more; overrides are for all of them")
    compare.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="each recipe runs with the seeds 0 to N-1; 3"
    )
    compare.add_argument(
        "--metric", metavar="NAME", help="what is compared; default: held-out accuracy, else mean reward"
    )
    compare.add_argument("--out", default="runs/compare", metavar="FOLDER", help="holds every run; runs/compare")
    command("show", "print a recipe resolved, what set each key, and the passes it needs", overrides=True, recipe=True)
    command("check", "check a recipe without training", overrides=True, recipe=True)
    listing = command("list", "list what a recipe can name")
    listing.add_argument("kind", nargs="?", help="algorithms, objectives, scorers, ...; left out: every kind")
    report = command("report", "write the report of a run")
    report.add_argument("run", metavar="RUN", help="folder of the run")
    score = command(
        "score", "judge stored answers: llmrl score FILE; or audit a scorer: llmrl score audit SCORER", True
    )
    score.add_argument(
        "target", metavar="FILE", help="completions of `llmrl eval`, rollouts of a run, or data; or audit"
    )
    score.add_argument("scorer", nargs="?", help="audit: a scorer's name or module:function; its options come after it")
    score.add_argument("--bench", metavar="NAME", help="the benchmark that the answers are to")
    score.add_argument(
        "--scorer", action="append", default=[], dest="scorers", metavar="YAML", help="who judges; one line each"
    )
    score.add_argument(
        "--protocol", action="append", default=[], metavar="NAMES", help="protocols: minerva,dapo; one line each"
    )
    score.add_argument("--out", metavar="FOLDER", help="where verdicts and results go; default: nothing is written")
    score.add_argument(
        "--data", metavar="SOURCE", help="audit: rows with references, instead of the scorer's own examples"
    )
    score.add_argument("--oracle", metavar="MODULE:FUNCTION", help="audit: writes a right response to a Prompt")
    score.add_argument("--full", type=float, help="audit: marks of a right answer; 1")
    score.add_argument("--none", type=float, help="audit: the most that an attack may get; 0")
    score.add_argument("--limit", type=int, metavar="N", help="audit: rows of --data; 50")
    serve = command("serve", "run vLLM servers that trainers sample from")
    serve.add_argument("model", help="folder or hub id: architecture and tokenizer; the weights come from the trainer")
    serve.add_argument("--replicas", type=int, default=1, metavar="N", help="servers, one port each; 1")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1: this machine alone")
    serve.add_argument("--port", type=int, default=8000, help="of the first server; 8000")
    serve.add_argument("--max-model-len", type=int, default=4096, metavar="N", help="tokens of prompt and answer; 4096")
    serve.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="as model.precision of the recipe")
    serve.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that share one server; 1")
    serve.add_argument("--gpu-memory", type=float, default=0.9, metavar="SHARE", help="of each GPU; 0.9")
    serve.add_argument(
        "--kv-cache-megabytes", type=int, metavar="N", help="exactly so much for keys and values instead"
    )
    serve.add_argument("--out", default="servers", metavar="FOLDER", help="gets logs and the token's file; servers")
    command("demo", "train the quickstart: supervised, then reinforced, on a CPU in minutes", overrides=True)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 when the user has to change something, 1 for what is a bug of ours.

    Nothing that is printed holds a secret of this process.
    """
    with redirect_stdout(Guarded(sys.stdout)), redirect_stderr(Guarded(sys.stderr)):
        return run(list(sys.argv[1:] if argv is None else argv))


def run(words: list[str]) -> int:
    """See `main`."""
    top = parser()
    known = next(action.choices for action in top._actions if action.dest == "command")
    if words and not words[0].startswith("-") and words[0] not in known:
        listing = f"Commands: {', '.join(known)}."
        print(f"llmrl: no command {words[0]!r}.{nearest(words[0], known)} {listing}", file=sys.stderr)
        return 2
    arguments, overrides = top.parse_known_args(words)
    if overrides and not arguments.takes_overrides:
        top.error(f"{arguments.command} takes no {' '.join(overrides)}")
    # before torch loads: threads that spin while they wait take the core from whatever else runs on the machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from llmrl import commands

    try:
        getattr(commands, f"run_{arguments.command}")(arguments, overrides)
    except LlmrlError as error:
        problems = error.problems if isinstance(error, RecipeError) else [str(error)]
        print(*(plain_text(f"{type(error).__name__}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return 2
    except OSError as error:
        print(plain_text(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        print(plain_text(traceback.format_exc()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
