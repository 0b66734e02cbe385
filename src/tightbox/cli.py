"""The command line: `tightbox train`, `eval`, `predict`, `diagnose`, and whatever else is in `COMMANDS`."""

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from tightbox import __version__
from tightbox.commands import (
    calibrate,
    demo,
    diagnose,
    doctor,
    evaluate,
    export,
    fddb,
    import_,
    merge,
    oracle,
    predict,
    rescore,
    serve,
    train,
)
from tightbox.errors import UserError

COMMANDS = {"demo": demo, "doctor": doctor, "train": train, "eval": evaluate, "predict": predict, "merge": merge}
COMMANDS |= {"serve": serve, "oracle": oracle, "diagnose": diagnose, "calibrate": calibrate}
COMMANDS |= {"import": import_, "export": export, "rescore": rescore, "fddb": fddb}


class _HelpFormatter(DefaultHelpFormatter):
    """Options are shown with dashes, as they are usually typed."""

    def _format_action_invocation(self, action: Any) -> str:
        shown: str = super()._format_action_invocation(action)
        return re.sub(r"--[\w.]+", lambda option: option[0].replace("_", "-"), shown)


class Parser(ArgumentParser):
    """A parser whose errors are one sentence."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """The same, also where jsonargparse passes on what converting a value raises."""
        try:
            return super().parse_args(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, ValueError) as error:
            self.error(f"a value cannot be read ({str(error)[:100]})")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        text, command = str(ex or message), self.prog.replace(" [options]", "")
        text = re.sub(r"Parser key \"([\w.]+)\":", lambda key: "--" + key[1].replace("_", "-") + ":", text)
        # An option that may be left out counts as a number or nothing; who gave one wants to read of the number.
        optional = r"(?s)Does not validate against any of the Union subtypes.*?(Expected a \S+ \S+>).*Given value: "
        text = re.sub(optional, r"\1. Got value: ", text)
        if missing := re.search(r"arguments are required: (\w+)\.(.+)", text):
            names = [name.split(".")[-1] for name in missing[2].split(", ")]
            shown = [name.upper() if name in ("checkpoint", "source") else f"--{name}" for name in names]
            text, command = f"{missing[1]} needs {' and '.join(shown)}", f"tightbox {missing[1]}"
        print(f"tightbox: {' '.join(text.split())} (see {command} --help)", file=sys.stderr)
        sys.exit(2)


def build_parser(chosen: str | None = None, arguments: Sequence[str] = ()) -> Parser:
    """The parser of all commands; none of it imports torch, but for what a training starts from.

    Args:
        chosen: the only command that gets its options, as those of all would cost time at each start; None for all.
        arguments: what will be given to it; a training takes its defaults from the checkpoint or the run named there.
    """
    about = "Object detectors that know how tight their boxes are."
    parser = Parser(prog="tightbox", description=about, formatter_class=_HelpFormatter)
    parser.add_argument("--version", action="version", version=f"tightbox {__version__}", help="print it and exit")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n")[0]
        command = Parser(description=summary, usage=f"tightbox {name} {module.USAGE}", formatter_class=_HelpFormatter)
        if chosen in (None, name):
            module.add_arguments(command)
            if name == "train":
                command.set_defaults(train.earlier_choices(arguments))
        commands.add_subcommand(name, command, help=summary)
    return parser


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Options as the parser knows them: `--batch-size=8` becomes `--batch_size=8`."""
    return [re.sub(r"^--[\w.-]+", lambda option: "--" + option[0][2:].replace("-", "_"), a) for a in arguments]


def _sentence(error: UserError) -> str:
    """The error's own sentence in one line, of which a DataLoader's process makes the last line of a traceback."""
    return " ".join(re.sub(r"(?s)^Caught UserError in .*\.UserError: ", "", str(error)).split())


def _refuse_empty(options: dict[str, Any]) -> None:
    """An empty text would count as a path to the current folder; mostly a shell's variable was not set."""
    for name, value in options.items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise UserError(f"{name.replace('_', '-')} is empty; give a name, or leave it out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for findings of the doctor, 2 for mistakes, 130 for Ctrl-C."""
    given = with_underscores(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's, of images that are read all the same
    try:
        parser = build_parser(given[0] if given else "", given[1:])
        if not given:
            parser.print_help()
            return 2
        parsed = parser.parse_args(given)
        _refuse_empty(parsed[parsed.command].as_dict())
        return int(COMMANDS[parsed.command].run(parsed[parsed.command]) or 0)
    except UserError as error:
        print(f"tightbox: {_sentence(error)}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 2
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = "perhaps for want of memory; try again with fewer --workers"
        print(f"tightbox: a process that loads images was ended, {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tightbox: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
