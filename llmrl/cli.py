"""The llmrl command. Parsing is light; everything that runs is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llmrl.errors import LlmrlError, RecipeError, nearest


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
    evaluate = command("eval", "measure a model or a run", overrides=True)
    evaluate.add_argument("target", metavar="MODEL_OR_RUN", help="model folder or hub id, or the folder of a run")
    evaluate.add_argument("--benchmark", action="append", default=[], metavar="NAME", help="may be repeated")
    command("show", "print a recipe resolved, what set each key, and the passes it needs", overrides=True, recipe=True)
    command("check", "check a recipe without training", overrides=True, recipe=True)
    listing = command("list", "list what a recipe can name")
    listing.add_argument("kind", nargs="?", help="algorithms, objectives, scorers, ...; left out: every kind")
    report = command("report", "write the report of a run")
    report.add_argument("run", metavar="RUN", help="folder of the run")
    command("demo", "train the quickstart: supervised, then reinforced, on a CPU in minutes", overrides=True)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, or 2 when the user has to change something."""
    words = list(sys.argv[1:] if argv is None else argv)
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
        print(*(f"{type(error).__name__}: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
