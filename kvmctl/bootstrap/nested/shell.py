"""A nested host for a person, without Vagrant: booted, used, gone."""

import shlex
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import booted
from kvmctl.bootstrap.progress import say, step


def run(words: Sequence[str]) -> int:
    """Boot a nested host and run a command in it, or a shell where there is none; its exit code.

    Raises KvmctlError where it cannot be built or booted.
    """
    built = image.ensure()
    with ExitStack() as stack:
        with step("Booting the nested host"):
            host = stack.enter_context(booted(built))
        program = host.ssh()
        if not words:
            say(f"a host of its own, with kvmctl in it; it is gone when you leave. Guests: {image.GUEST}")
            program.insert(1, "-t")
        command = [*program, *([shlex.join(words)] if words else [])]
        return subprocess.run(command, check=False).returncode
