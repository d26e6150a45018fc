"""`longcat`: train, validate, rehearse, run a workflow, convert configurations, demo, check the installation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.errors import LongCatError, StoppedByUserError
from ...training.resources import machine_faults_named
from ..graph.core_nodes import draw_missing_samples, node_classes
from ..graph.override import apply_settings
from ..graph.runner import read_graph, run_graph
from ..graph.tiny import make_tiny
from ..host import use_host
from .flags import read_flags
from .host import DEFAULT_HOME, StopFlag, TerminalHost, say, show_node
from .train import DEFAULT_CONFIG, copy_examples, export_config, import_config, read_training, small_run, train_run

if TYPE_CHECKING:
    from ..types import TrainedLora

EXIT_ERROR = 1
EXIT_STOPPED = 130
"""128 + SIGINT, as in shells."""

TINY = "try it in seconds: tiny model, small sizes, few steps"

CHATTY_LOGGERS = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao", "diffusers.models.modeling_utils")
"""They warn about parts that are not used here. Errors still show."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 1 after an error, 130 when stopped by Ctrl-C."""
    parser = _parser()
    args, words = parser.parse_known_args(arguments)
    if words and not hasattr(args, "keys"):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if not args.debug:
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
    stop = StopFlag()
    try:
        with stop.on_signals():
            if words:
                args.keys = read_flags(words)
            with machine_faults_named(lambda: "longcat"):
                return args.command(args, stop)
    except StoppedByUserError as error:
        _complain(f"{error}\nEverything that was finished is saved; the same command continues from there.")
        return EXIT_STOPPED
    except LongCatError as error:
        if args.debug:
            raise
        _complain(f"error: {error}")
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longcat", description="Train LongCat LoRAs and sample with them.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--base-directory",
        type=Path,
        default=Path(DEFAULT_HOME),
        metavar="DIR",
        help="holds input/, output/ and models/ (default: ./%(default)s)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_config_commands(commands, [common, home])
    run = commands.add_parser("run", parents=[common, home], help="run a workflow in API format")
    run.add_argument("workflow", type=Path, help="e.g. workflows/api/longcat_image_edit_train.json")
    run.add_argument("--tiny", action="store_true", help=TINY)
    run.add_argument("--server", metavar="URL", help="send it to a running ComfyUI, e.g. http://127.0.0.1:8188")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.input=value",
        help="change an input; NODE is an id, a title or a class, e.g. TrainLoRA.lora_rank=8 (may be repeated)",
    )
    run.set_defaults(command=_run)

    rehearse = commands.add_parser(
        "rehearse", parents=[common, home], help="try a training in about a minute before the real one"
    )
    rehearse.add_argument("workflow", type=Path, help="a workflow, saved or in API format, or a config.json")
    rehearse.add_argument("--set", action="append", default=[], metavar="NODE.input=value", help="as in longcat run")
    rehearse.set_defaults(command=_rehearse)

    demo = commands.add_parser(
        "demo", parents=[common], help="teach tiny models an edit and a movement, and show before and after"
    )
    demo.add_argument("--output", type=Path, default=Path("demo_output"), metavar="DIR", help="default: ./%(default)s")
    demo.set_defaults(command=_demo)

    doctor = commands.add_parser("doctor", parents=[common, home], help="check the installation")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_config_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Commands that take a configuration, and each of its keys as a flag."""
    keys = "Each key of config.json is a flag too, and overrides the file: --learning_rate 1e-4."
    known = {"parents": parents, "epilog": keys, "allow_abbrev": False}
    train = commands.add_parser("train", help="train with the settings of config.json and its data file", **known)
    train.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    train.add_argument("--tiny", action="store_true", help=TINY)
    train.set_defaults(command=_train, keys={})

    validate = commands.add_parser("validate", help="draw pictures, with the run's LoRA if there is one", **known)
    validate.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if it is there")
    validate.add_argument("--tiny", action="store_true", help=TINY)
    validate.set_defaults(command=_validate, keys={})

    config = commands.add_parser("config", help="config.json to workflow, and back")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    read = actions.add_parser("import", help="make a workflow of config.json and its data file", **known)
    read.add_argument("config", type=Path, metavar="CONFIG", help="e.g. config/config.json")
    read.add_argument("-o", "--output", type=Path, metavar="NAME", help="default: the run's name")
    read.set_defaults(command=_import, keys={})
    write = actions.add_parser("export", parents=parents, help="make config.json and data file of a training workflow")
    write.add_argument("workflow", type=Path, help="in UI or API format")
    write.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: named after the workflow")
    write.set_defaults(command=_export)
    examples = actions.add_parser("examples", parents=parents, help="copy the example files to ./config")
    examples.set_defaults(command=_examples)


def _train(args: argparse.Namespace, stop: StopFlag) -> int:
    run, host = read_training(args.config, args.keys, args.base_directory, stop)
    train_run(small_run(run) if args.tiny else run, host)
    _list_files(host.files)
    return 0


def _validate(args: argparse.Namespace, stop: StopFlag) -> int:
    from .validate import validation_of

    config = args.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    return _execute(*validation_of(config, args.keys, args.base_directory, stop, args.tiny))


def _import(args: argparse.Namespace, stop: StopFlag) -> int:
    _list_files(import_config(args.config, args.keys, args.output, args.base_directory))
    return 0


def _export(args: argparse.Namespace, stop: StopFlag) -> int:
    _list_files(export_config(args.workflow, args.output, args.base_directory))
    return 0


def _examples(args: argparse.Namespace, stop: StopFlag) -> int:
    _list_files(copy_examples(DEFAULT_CONFIG.parent))
    return 0


def _run(args: argparse.Namespace, stop: StopFlag) -> int:
    host = TerminalHost(args.base_directory, stop=stop)
    with use_host(host):
        graph: dict[str, Any] = read_graph(args.workflow)
        if args.tiny:
            graph = make_tiny(graph, quantised=False if args.server else None)
        # After --tiny, so that what the user asks for wins.
        graph = apply_settings(graph, args.set, node_classes())
    if args.server:
        return _run_on_server(args.server, graph, host)
    return _execute(graph, host)


def _rehearse(args: argparse.Namespace, stop: StopFlag) -> int:
    from .rehearse import rehearsals

    faults = 0
    for report in rehearsals(args.workflow, args.set, args.base_directory, stop, show_node):
        print(report.text())
        faults += len(report.faults)
    return EXIT_ERROR if faults else 0


def _execute(graph: dict[str, Any], host: TerminalHost) -> int:
    for path in draw_missing_samples(graph, host.input_dir()):
        say(f"drew the sample picture {path}")
    outputs = run_graph(graph, host, show_node, host.stop.is_set)
    remember_loras(outputs, host)
    _list_files(host.files)
    for lora in _trained(outputs):
        if lora.report is not None:
            print(lora.report.text())
    return 0


def _run_on_server(url: str, graph: dict[str, Any], host: TerminalHost) -> int:
    import asyncio

    from .server import run_on_server

    lines = asyncio.run(run_on_server(url, graph, host))
    for line in lines:
        print(line)
    return 0


def _demo(args: argparse.Namespace, stop: StopFlag) -> int:
    from .demo import run_demo
    from .demo_lessons import LESSONS

    host = TerminalHost(args.output, device="cpu", stop=stop)
    _list_files(run_demo(host, LESSONS))
    return 0


def _doctor(args: argparse.Namespace, stop: StopFlag) -> int:
    from .doctor import report

    lines, ready = report(TerminalHost(args.base_directory))
    for line in lines:
        print(line)
    return 0 if ready else EXIT_ERROR


def remember_loras(outputs: dict[str, tuple], host: TerminalHost) -> None:
    """Adds each trained LoRA to the files of the run, also that of a run that was finished before."""
    for lora in _trained(outputs):
        host.wrote(lora.path)


def _trained(outputs: dict[str, tuple]) -> list[TrainedLora]:
    from ..types import TrainedLora

    return [value for values in outputs.values() for value in values if isinstance(value, TrainedLora)]


def _list_files(files: Sequence[Path]) -> None:
    if files:
        print("Wrote:")
    for path in files:
        print(f"  {path}")


def _complain(message: str) -> None:
    print(message, file=sys.stderr)
