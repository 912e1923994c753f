"""The command line: finds the command, turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings

from es2.errors import Es2Error

COMMANDS = {
    "harden": "harden a chat model: find the layers, separate, validate, save",
    "layers": "show each layer's separability and choose the critical two",
    "attack": "attack a model and judge the answers",
    "margin": "push embeddings harder and harder: does meaning break before safety?",
    "capability": "measure what a model knows, beside its base, on MMLU-Pro, GPQA or your questions",
    "evaluate": "measure drift, over-refusal, capability and the safety margin of a finished run",
    "compare": "run or gather several defences and seeds into one table and one report",
    "judge": "let several judges read a run's answers, and compare them",
    "list": "list the attacks, the defences and the judges there are",
    "run": "run a recipe from model to report",
    "report": "write the HTML report of a run again",
    "publish": "copy a run's numbers and verdicts without prompts and answers",
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; each is a module of its own, imported only when it is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("es2"))
        return
    if argv[0] not in COMMANDS:
        fail(f"no command {argv[0]!r}; there are {', '.join(COMMANDS)}")
    quiet()
    try:
        importlib.import_module(f"es2.commands.{argv[0]}").main(argv[1:])
    except Es2Error as error:
        fail(str(error))
    except OSError as error:
        # A full disk or a folder that may not be written is the user's to mend, wherever it strikes.
        if error.filename is None and error.errno is None:
            raise
        fail(
            f"{error.filename or 'output'}: {error.strerror or error}; free space or choose another"
        )
    except KeyboardInterrupt:
        print("es2: interrupted; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)


def usage() -> str:
    """What `es2 --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    head = "usage: es2 COMMAND [OPTIONS]   (es2 COMMAND --help tells the options)"
    return "\n".join([head, "", *lines])


def quiet() -> None:
    """Keeps libraries' progress bars and advice away from es2's own output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar of reading a GGUF file has no other switch
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # peft looks for the config of an embedded model on the Hub when it saves an adapter.
    for message in ("Could not find a config file", "Unable to fetch remote file"):
        warnings.filterwarnings("ignore", message=message)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("es2").setLevel(logging.INFO)


def fail(line: str) -> None:
    """One line on standard error, then exit code 2."""
    print(f"es2: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
