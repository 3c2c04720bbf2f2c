"""`kvmctl migrate`: guests move to another host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmctl.cli.app import App, pass_app
from kvmctl.cli.completion import complete_hosts
from kvmctl.cli.duration import seconds
from kvmctl.cli.lifecycle import guests_argument, raise_for_failures
from kvmctl.cli.migrate_history import show as show_history
from kvmctl.cli.output import Column, detail, emit, note, warn
from kvmctl.cli.progress import Moves
from kvmctl.model.errors import KvmctlError, RefusedError, UsageError
from kvmctl.model.units import human_size, parse_size
from kvmctl.model.wording import quoted

if TYPE_CHECKING:
    from kvmctl.control.migrate import Candidate
    from kvmctl.control.move import Moved, Mover
    from kvmctl.model.migration import Finding, Forecast, MigrationOptions

_FINDINGS = (
    Column("name", "GUEST"),
    Column("severity", "SEVERITY"),
    Column("what", "WHAT"),
    Column("side", "WHERE"),
    Column("text", "FOUND"),
    Column("next", "NEXT"),
)
_MOVED = (
    Column("name", "GUEST"),
    Column("result", "RESULT"),
    Column("seconds", "TIME", lambda value: f"{value:.1f} s", right=True),
    Column("expected_seconds", "EXPECTED", lambda value: f"{value:.1f} s", right=True),
    Column("downtime", "DOWNTIME", lambda value: f"{value * 1000:.0f} ms", right=True),
    Column("sent", "SENT", human_size, right=True),
    Column("text", "WHAT"),
)


def _bandwidth(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = parse_size(text.removesuffix("/s"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if size < 1 << 20:
        raise click.BadParameter("libvirt counts in MiB a second: 1MiB is the least")
    return size


def _downtime(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    found = None if text is None else seconds(ctx, param, text)
    if found == 0:
        raise click.BadParameter("a guest stands for a moment at least: write 1ms or more")
    return found


def _which(_ctx: click.Context, _param: click.Parameter, text: str | None) -> None:
    """virsh means connections by it; who drains a host means guests."""
    if text is not None:
        raise click.UsageError(
            "--parallel could be two things: --jobs N is guests at a time, --connections N each one's"
        )


@click.command()
@guests_argument
@click.argument("host", metavar="URI|HOST", required=False, shell_complete=complete_hosts)
@click.option("--check", is_flag=True, help="Only say what stands in the way; exit 5 if anything does.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Move N guests at a time."
)
@click.option("--offline", is_flag=True, help="Also guests that are off; with --copy-storage their disks.")
@click.option("--copy-storage", is_flag=True, help="Copy disks that the hosts do not share.")
@click.option("--overwrite", is_flag=True, help="With --copy-storage: write over images that are there already.")
@click.option("--assume-shared", is_flag=True, help="Take the disks' storage for shared where that cannot be told.")
@click.option("--bandwidth", callback=_bandwidth, metavar="SIZE/s", help="Send each guest at most so fast: 100MiB/s.")
@click.option(
    "--connections", type=click.IntRange(2, 16), metavar="N", help="Send each guest over N connections instead of one."
)
@click.option("--parallel", metavar="N", callback=_which, expose_value=False, hidden=True)
@click.option("--max-downtime", callback=_downtime, metavar="TIME", help="How long it may stand at the end: 300ms.")
@click.option("--auto-converge", is_flag=True, help="Slow down a guest that changes its memory too fast.")
@click.option("--post-copy", is_flag=True, help="Let it go on there after one round; its rest follows.")
@click.option("--tls", is_flag=True, help="Encrypt what is sent; both hosts need certificates.")
@click.option("--direct", is_flag=True, help="By way of this process, not from daemon to daemon.")
@click.option("--force", is_flag=True, help="Move even if promises there are broken, or it may never end.")
@click.option("--history", is_flag=True, help="Only show how moves went, and what was expected of them.")
@pass_app
def migrate(
    app: App,
    /,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    host: str | None,
    check: bool,
    history: bool,
    jobs: int,
    **wishes: Any,
) -> None:
    """Move guests to another host while they run, once nothing stands in the way of any of them.

    They go in the order they are named in, one by one or --jobs at a time. HOST is a name in /etc/kvmctl/hosts.yaml.
    The daemons do it between them: it goes on if kvmctl is killed, and the next run settles it. Only disks of guests
    that are off are copied by kvmctl itself. Ctrl-C gives a move up, and the guest stays.

    \b
    Example:
      kvmctl migrate web1 qemu+ssh://node2/system --check
      kvmctl migrate web1 db1 node2 --copy-storage --bandwidth 100MiB/s
      kvmctl migrate '*' node2 --jobs 4
      kvmctl migrate --history
    """
    if history:
        _show_history(app, (*names, host) if host else names, check or any(wishes.values()))
        return
    host = _target(host, names, labels)
    from kvmctl.control import migrate as control
    from kvmctl.control.move import Moved, Mover
    from kvmctl.control.select import chosen, in_order
    from kvmctl.model.migration import MigrationOptions

    options = MigrationOptions(**wishes)
    _check_options(options)
    source = app.hypervisor()
    target, named = control.open_target(host)
    with target:
        control.recover(source, target, warn)
        guests = in_order(chosen(source, names, labels), names)
        if not check:
            control.measure(guests)
        candidates = control.check(source, target, named, guests, options)
        _report(app, candidates, check)
        if check:
            return
        progress = Moves(app)
        mover = Mover(source, target, options, progress.show, warn, min(jobs, len(candidates)))
        expected = control.expect(mover, candidates)
        _announce(app, candidates, expected, options)
        try:
            with progress:
                moved = control.move_all(mover, candidates, expected, jobs)
        except BaseException:
            control.renew_weights(source, target, warn)
            raise
        if any(isinstance(one, Moved) for one in moved):
            control.renew_weights(source, target, warn)
        _show(app, candidates, moved, mover)


def _show_history(app: App, names: Sequence[str], others: bool) -> None:
    if others:
        raise UsageError("--history only shows moves of before", "leave the other options out")
    show_history(app, names)


def _target(host: str | None, names: Sequence[str], labels: Sequence[str]) -> str:
    """The host's word, which is the last. Raises UsageError where it is the only one."""
    if host is None:
        raise click.UsageError("Missing argument: which guests, and the host that they are to move to")
    if not names and not labels:
        raise UsageError(f"no guest named: {quoted(host)} alone is the host", "kvmctl migrate GUEST… HOST")
    return host


def _check_options(options: MigrationOptions) -> None:
    if options.overwrite and not options.copy_storage:
        raise UsageError("--overwrite is about the images that --copy-storage makes", "add --copy-storage")
    if options.connections and options.post_copy:
        raise UsageError("--connections and --post-copy exclude each other in QEMU", "leave one of them out")


def _report(app: App, candidates: Sequence[Candidate], check: bool) -> None:
    """Print what was found, where it stops the move or was asked for. Raises RefusedError where it stops it."""
    from kvmctl.policy.migration import blocks

    found = [finding for one in candidates for finding in one.found]
    stopped = blocks(found)
    if check or stopped:
        if found or app.output != "table":
            emit(app, [_row(finding) for finding in found], _FINDINGS)
        if not stopped:
            note(app, f"nothing stands in the way of {len(candidates)} guest{'s' if len(candidates) != 1 else ''}")
    else:
        for finding in found:
            detail(app, f"guest {finding.guest}: {finding.side}: {finding.text}")
    if stopped:
        count = sum(finding.severity == "obstacle" for finding in found)
        raise RefusedError(
            f"{count} obstacle{'s stand' if count > 1 else ' stands'} in the way; nothing was moved",
            "remove what stands above; --check looks again",
        )


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.guest,
        "severity": finding.severity,
        "what": finding.what,
        "side": finding.side,
        "text": finding.text,
        "next": finding.next,
    }


def _announce(
    app: App, candidates: Sequence[Candidate], expected: Sequence[Forecast | None], options: MigrationOptions
) -> None:
    """Say how long it will take. Raises RefusedError where it would not come to an end."""
    endless = []
    for one, forecast in zip(candidates, expected, strict=True):
        if forecast is None:
            continue
        rate = "unknown" if forecast.dirty_rate is None else f"{human_size(forecast.dirty_rate)}/s"
        note(
            app,
            f"guest {one.guest.name}: about {forecast.seconds:.1f} s for {human_size(forecast.memory)} at "
            f"{human_size(forecast.bandwidth)}/s ({forecast.source}), changing {rate}"
            + (f", slowed down by about {forecast.throttled} %" if forecast.throttled else ""),
        )
        if not forecast.converges:
            endless.append(one.guest.name)
    if endless and not options.force:
        raise RefusedError(
            f"guest {', '.join(endless)} changes memory faster than it is sent: the move would not end",
            "add --auto-converge, --post-copy, a longer --max-downtime or more --bandwidth; --force tries it all the "
            "same",
        )
    for name in endless:
        warn(f"forced: guest {name} changes memory faster than it is sent; Ctrl-C gives the move up")


def _show(app: App, candidates: Sequence[Candidate], moved: Sequence[Moved | KvmctlError], mover: Mover) -> None:
    failed = [one for one in moved if isinstance(one, KvmctlError)]
    if len(moved) == 1 and failed:
        raise failed[0]
    ends = {"source": mover.source.uri, "target": mover.target.uri}
    rows = [_moved_row(one.guest.name, result) | ends for one, result in zip(candidates, moved, strict=True)]
    emit(app, rows, _MOVED)
    for result in moved:
        if isinstance(result, KvmctlError):
            continue
        for path in result.left_behind:
            note(app, f"guest {result.guest}: {path} is still on {mover.source.uri}")
    raise_for_failures(failed, len(moved))


def _moved_row(name: str, result: Moved | KvmctlError) -> dict[str, Any]:
    failed = isinstance(result, KvmctlError)
    done = None if isinstance(result, KvmctlError) else result
    job, expected = (done.job, done.expected) if done else (None, None)
    return {
        "name": name,
        "result": "not applied" if failed else "changed",
        "seconds": round(done.seconds, 3) if done else None,
        "expected_seconds": round(expected.seconds, 3) if expected else None,
        "transfer_seconds": job.elapsed if job else None,
        "downtime": job.downtime if job else None,
        "expected_downtime": round(expected.downtime, 3) if expected else None,
        "sent": job.memory_sent or job.disk_sent if job else None,
        "rounds": job.rounds if job else None,
        "throttled": job.throttled if job else None,
        "dirty_rate": expected.dirty_rate if expected else None,
        "left_behind": list(done.left_behind) if done else [],
        "text": result.message if isinstance(result, KvmctlError) else "moved, and defined there",
    }
