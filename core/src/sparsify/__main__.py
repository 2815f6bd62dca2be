"""Start the program: a signal ends it with exit 130 and two lines, wherever it lands, from the first import on."""

import os
import signal  # and nothing else that takes time: before `main` a signal is a traceback
import sys


# Where a plain KeyboardInterrupt has once left a string given to `exec`, as in dataclasses, `python -m` kills itself at
# its end: exit -2 (`unhandled_keyboard_interrupt` in Python/pythonrun.c, 3.11 to 3.13). It does not know subclasses.
class Interrupted(KeyboardInterrupt):
    """Stop the program."""


def main(*words: str) -> None:
    """Run the program on these words and the command line's, and exit."""
    heard = list[int]()

    def stop(number: int, frame: object) -> None:
        heard.append(number)
        if hasattr(signal, "setitimer"):  # destructors and callbacks from C drop an exception: raise it again
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, 2.0)
        raise Interrupted

    try:
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
            signal.signal(signal.SIGINT, stop)
        from sparsify.cli.app import main as program

        program([*words, *sys.argv[1:]])
    except BaseException as end:  # not always ours: what leaves __set_name__, CPython 3.11 turns into a RuntimeError
        if not heard and getattr(end, "code", None) != 130:
            raise
        for name in {"SIGINT", "SIGTERM", "SIGALRM"} & set(dir(signal)):  # `uv run` passes on what the terminal sent
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        from sparsify.errors import Stopped
        from sparsify.talk import leads

        if not leads():  # torch's threads, asked for a process that is gone, may abort while the interpreter ends
            sys.stderr.flush()
            os._exit(130)
        if isinstance(end, Stopped):
            sys.exit(130)
        sys.stderr.write("error: interrupted\nfix: run the same command again, with --resume if it made a run folder\n")
        sys.exit(130)


def run_main() -> None:
    """Behave as `sparsify run`, the command of the old guides (`sparsify.run`)."""
    main("run")


def doctor_main() -> None:
    """Behave as `sparsify doctor` (`sparsify.check_environment`)."""
    main("doctor")


if __name__ == "__main__":
    main()
