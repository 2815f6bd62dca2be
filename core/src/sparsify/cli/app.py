"""The `sparsify` program: plugins' commands in one lazy group, errors as two lines, exit codes of DESIGN §5."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from sparsify.errors import ExitCode, RequestError, SparsifyError
from sparsify.plugins import Plugins, load_plugins, load_target
from sparsify.talk import leads


class CommandGroup(TyperGroup):
    """Offer every plugin's commands; a command's module is imported when it is called, not when it is listed."""

    def __init__(self, plugins: Plugins) -> None:
        super().__init__(
            name="sparsify",
            help="From a trained model and a dataset to a smaller, faster, verified ONNX model.",
            epilog="Every command: --help. Errors exit 2-6 with a fix; --debug shows the traceback.",
            rich_markup_mode=None,
            no_args_is_help=True,
            context_settings={"help_option_names": ["--help", "-h"]},
        )
        self.plugins = plugins

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands of all plugins."""
        return [offer.entry.name for offer in self.plugins.offers("commands")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command."""
        name = cmd_name.replace("_", "-")
        known = [word for offer in self.plugins.offers("commands") for word in offer.names]
        if name not in known:
            near = get_close_matches(name, known, n=1)
            fix = f"did you mean `sparsify {near[0]}`?" if near else "see `sparsify --help`"
            raise RequestError(f"there is no command '{cmd_name}'", fix=fix)
        command = typer.main.get_command(load_target(self.plugins.find("commands", name)))
        command.name = name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from the entries alone, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(offer.entry.name, offer.entry.summary) for offer in self.plugins.offers("commands")])


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit; what an interruption says is told by `sparsify.__main__`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if arguments == ["--version"]:
        from importlib.metadata import version

        typer.echo(f"sparsify {version('sparsify-core')}")
        sys.exit(ExitCode.OK)
    plugins = load_plugins()
    try:
        code = _call(plugins, arguments)
    except SparsifyError as error:
        _fail(error.lines(), error.exit_code, debug)
    except TyperException as error:
        _fail(_usage(error), ExitCode.REQUEST, debug)
    except typer.Abort:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)  # typer turns Ctrl-C into 130


def _call(plugins: Plugins, arguments: list[str]) -> Any:
    """Call the command; an exception out of a plugin's code is that plugin's fault, one out of core a bug of ours."""
    try:
        return CommandGroup(plugins).main(arguments, prog_name="sparsify", standalone_mode=False)
    except (SparsifyError, TyperException, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        from sparsify.stages import blame

        blame(error, plugins, f"`sparsify {arguments[0]}`")
        raise


def _fail(lines: str, code: ExitCode, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    if leads():
        typer.echo(lines, err=True)
    else:
        time.sleep(10)  # the first process says it, and a launcher would end that one together with this
    sys.exit(code)


def _usage(error: TyperException) -> str:
    """Say a usage error in our two lines."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "sparsify"
    fix = f"see `{path} --help`"
    possibilities = sorted(getattr(error, "possibilities", None) or ())
    if possibilities:
        fix = f"did you mean {possibilities[0]}? See `{path} --help`"
    message = str(getattr(error, "message", "") if possibilities else error.format_message())
    return RequestError(message.rstrip("."), fix=fix).lines()
