"""The texts of a crontab and of systemd's units that run one command every minute, and their quoting rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from shlex import quote, split

from kvmctl.model.errors import RefusedError
from kvmctl.model.wording import quoted

MARK = "written by kvmctl rebalance install"
"""A comment that says this makes a file ours: no other is overwritten or removed."""

CRON_LONGEST = 998
"""Characters of a command or of an environment line: cron drops a whole file that has a longer one."""

_HEADER = f"# {MARK}; kvmctl rebalance uninstall removes it\n"
_PLAIN = re.compile(r"[A-Za-z0-9@:,./+=_-]+", re.ASCII)


def is_ours(text: str) -> bool:
    """Whether a file's text has the mark."""
    return any(line.startswith("#") and MARK in line for line in text.splitlines())


def crontab(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """A file for /etc/cron.d that runs the command `words` as root every minute.

    Raises RefusedError for what cron cannot carry: line breaks, backslashes, in a value double quotes and spaces
    at an end, and lines that are too long.
    """
    for name, value in environment.items():
        _refuse_unprintable(value, name)
        if '"' in value or value != value.strip():
            why = "cron cannot hold a double quote, or spaces at an end"
            raise RefusedError(f"{name} is {quoted(value)}: {why}", f"change {name}")
    for word in words:
        _refuse_unprintable(word, "the command")
        if "\\" in word:
            why = "what becomes of a backslash differs from cron to cron"
            raise RefusedError(f"the command has {quoted(word)}: {why}", "write it without")
    # Unescaped, a % ends the command and begins its input.
    command = " ".join(map(quote, words)).replace("%", "\\%")
    settings = [f'{name}="{value}"' for name, value in environment.items()]
    for line in (*settings, command):
        if len(line.encode()) > CRON_LONGEST:
            raise RefusedError(f"{quoted(line)} is too long for cron, which takes {CRON_LONGEST} bytes", "shorten it")
    return _HEADER + "".join(f"{line}\n" for line in settings) + f"* * * * * root {command}\n"


def service(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """A systemd service that runs the command `words` once. Raises RefusedError for line breaks in it."""
    for word in words:
        _refuse_unprintable(word, "the command")
    if "$" in words[0]:
        raise RefusedError(f"systemd takes no $ in a program's path: {quoted(words[0])}", "move the program")
    command = " ".join(_unit_word(word.replace("$", "$$")) for word in words)
    settings = ""
    for name, value in environment.items():
        _refuse_unprintable(value, name)
        settings += f"Environment={_unit_word(f'{name}={value}')}\n"
    return f"{_HEADER}{_SERVICE.format(command=command, settings=settings)}"


def timer() -> str:
    """The systemd timer that starts the service every minute."""
    return _HEADER + _TIMER


def program(text: str) -> str:
    """The path of the program that a crontab or service of ours runs; empty where it has none."""
    found = re.search(r"^(?:\* \* \* \* \* root |ExecStart=)(.+)$", text, re.MULTILINE)
    try:
        words = split(found[1]) if found else []
    except ValueError:  # somebody edited it
        return ""
    return words[0].replace("\\%", "%").replace("%%", "%") if words else ""


def _unit_word(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _refuse_unprintable(text: str, name: str) -> None:
    if not text.isprintable():
        raise RefusedError(f"{name} has a line break or another control character: {quoted(text)}", f"change {name}")


# Guests' cgroups and KSM have to be written, so /sys stays writable; kvmctl, its state or an SSH key may lie in
# a home or in /tmp, so those stay visible.
_SERVICE = """\
[Unit]
Description=Keep the promises made to this host's guests (kvmctl rebalance)
After=libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart={command}
{settings}# Another kvmctl is at work: the next minute comes.
SuccessExitStatus=9
TimeoutStartSec=3min
# Two lines a minute that say nothing happened hide those that say something.
SyslogLevel=notice
LogLevelMax=notice
UMask=0077
NoNewPrivileges=yes
ProtectSystem=full
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
"""

_TIMER = """\
[Unit]
Description=Keep the promises made to this host's guests, every minute (kvmctl rebalance)

[Timer]
OnCalendar=minutely
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
