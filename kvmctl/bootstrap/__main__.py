"""The command line of the bootstrap."""

import argparse
import os
import sys
from collections.abc import Sequence

from kvmctl.bootstrap import clean, demo, environment, orphans, setup, testing
from kvmctl.bootstrap.nested import image, shell
from kvmctl.bootstrap.progress import say
from kvmctl.host.lock import lock
from kvmctl.model.errors import KvmctlError

_LOCK = "this machine's set-up"


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code, after one sentence about what went wrong and one about what to do."""
    for stream in (sys.stdout, sys.stderr):
        # What programs print may hold what the terminal's encoding does not.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command not in ("test", "nested"):
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(options, rest)
    except KvmctlError as error:
        say(f"error: {error.message}")
        if error.hint:
            say(f"  {error.hint}")
        return error.exit_code
    except BrokenPipeError:
        # Nobody reads any more; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        say(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return 1
    except KeyboardInterrupt:
        say("interrupted; running it again goes on from here")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m kvmctl.bootstrap", description="Set up a checkout of kvmctl on a Debian machine, as root."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="set up, then show kvmctl with three real guests")
    commands.add_parser("test", help="set up, then run all the tests; arguments after -- go to pytest")
    commands.add_parser("setup", help="only set up: packages, .venv, libvirt, the micro guest, the accelerator")
    commands.add_parser(
        "nested", help="boot a host in a virtual machine, with devices to give away; a command after --, or a shell"
    )
    removal = commands.add_parser("clean", help="remove what demo and setup made, except packages and caches")
    removal.add_argument("--all", action="store_true", help="remove the caches and .venv as well")
    return parser


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    setup.check_root()
    if options.command == "test":
        orphans.wait_for_them()
    with lock(_LOCK):
        if options.command == "clean":
            clean.clean(options.all)
            return 0
        words = [argument for argument in rest if argument != "--"]
        machine = setup.prepare(
            tests=options.command in ("test", "nested"),
            vagrant=options.command == "test" and testing.wants_vagrant(words),
        )
        if options.command == "nested":
            image.ensure()
        if options.command == "demo":
            demo.run(machine)
            return 0
        if options.command == "setup":
            print(f"kvmctl   {environment.KVMCTL}\nkernel   {machine.guest.kernel}\ninitrd   {machine.guest.initrd}")
            return 0
        if options.command == "test":
            clean.remove_test_leftovers()
    return shell.run(words) if options.command == "nested" else testing.run(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
