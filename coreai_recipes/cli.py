"""The entry point of `recipe`: how every command ends. Ctrl-C is answered before anything slow is imported."""

import sys

from coreai_recipes.terminal.signals import signals

READER_GONE = 141  # 128 + SIGPIPE, as a shell reports of any tool whose reader left
FAULT = 70  # <sysexits.h>, EX_SOFTWARE


def main() -> None:
    """Run the command that sys.argv names, and exit with its status."""
    try:
        signals.take()
        status = _run(sys.argv[1:])
        signals.leave()
    except KeyboardInterrupt:  # around the command
        signals.leave()
        status = _say(signals.said, signals.status)
    sys.exit(status)


def script() -> None:
    """`main` as a process of its own, which ends at once: taking torch's modules apart takes 0.4 s."""
    try:
        main()
    except SystemExit as end:
        if "torch" not in sys.modules:
            raise
        import atexit
        import os

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


def _run(arguments: list[str]) -> int:
    """The status of a command, with the standard streams guarded."""
    from coreai_recipes.terminal.streams import ReaderGone, StreamError, guarded_streams

    try:
        with guarded_streams():
            return _end(arguments)
    except ReaderGone:
        return READER_GONE
    except StreamError as error:  # the last words that were still in a buffer
        return _say(str(error), 2)


def _end(arguments: list[str]) -> int:
    """A command's status, and a sentence for each way in which it may fail."""
    from coreai_recipes.errors import UserError
    from coreai_recipes.terminal.streams import ReaderGone

    try:
        from coreai_recipes.commands import execute

        status = execute(arguments)
        return status if signals.received is None else _say(signals.said, signals.status)
    except ReaderGone:
        raise
    except BaseException as error:
        if signals.received is not None or isinstance(error, KeyboardInterrupt):
            return _say(signals.said, signals.status)  # whatever became of it: some libraries turn it into others
        if isinstance(error, UserError):
            return _say("\n".join(error.problems), 2)
        return _explain(error, arguments)


def _explain(error: BaseException, arguments: list[str]) -> int:
    """What nobody has foreseen, in one sentence: a plugin's fault, or the last net."""
    import os
    import traceback

    from coreai_recipes.errors import describe

    plugins = sys.modules.get("coreai_recipes.recipe.plugins")
    blamed = plugins and plugins.blame(error)
    if isinstance(error, SystemExit) and isinstance(error.code, int | None) and not blamed:
        return error.code or 0  # a shell asked for completions
    if os.environ.get("RECIPE_TRACEBACK"):
        traceback.print_exception(error)
    if blamed:
        return _say(f"{blamed}; RECIPE_TRACEBACK=1 shows the traceback", 2)
    command = next((f"recipe {word}" for word in arguments if not word.startswith("-")), "recipe")
    return _say(
        f"{command}: {describe(error)}: this is a bug in recipe: please report it with the traceback that "
        "RECIPE_TRACEBACK=1 shows",
        FAULT,
    )


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status
