import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmctl.control.doctor import schedule as doctor
from kvmctl.host import schedule, schedule_text
from kvmctl.host.schedule import CRONTAB, SERVICE, TIMER, Job
from kvmctl.model.errors import ConflictError, KvmctlError, RefusedError

pytestmark = pytest.mark.unit
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="cron and systemd run only what is root's")

MARK = "# written by kvmctl rebalance install; kvmctl rebalance uninstall removes it\n"
JOB = Job(
    ("/usr/local/bin/kvmctl", "-c", "qemu+ssh://host2/system?keyfile=%2Froot%2Fkey", "-q", "rebalance"),
    {"PATH": "/usr/bin:/bin", "KVMCTL_STATE_DIR": "/srv/100% kvmctl's"},
)
AS_CRONTAB = (
    MARK
    + """\
PATH="/usr/bin:/bin"
KVMCTL_STATE_DIR="/srv/100% kvmctl's"
* * * * * root /usr/local/bin/kvmctl -c 'qemu+ssh://host2/system?keyfile=\\%2Froot\\%2Fkey' -q rebalance
"""
)
AS_SERVICE = (
    MARK
    + """\
[Unit]
Description=Keep the promises made to this host's guests (kvmctl rebalance)
After=libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart=/usr/local/bin/kvmctl -c "qemu+ssh://host2/system?keyfile=%%2Froot%%2Fkey" -q rebalance
Environment=PATH=/usr/bin:/bin
Environment="KVMCTL_STATE_DIR=/srv/100%% kvmctl's"
# Another kvmctl is at work: the next minute comes.
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
)
AS_TIMER = (
    MARK
    + """\
[Unit]
Description=Keep the promises made to this host's guests, every minute (kvmctl rebalance)

[Timer]
OnCalendar=minutely
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's folders for such files, empty."""
    for name in (CRONTAB, SERVICE):
        (tmp_path / name).parent.mkdir(parents=True)
    return tmp_path


def install(kind: schedule.Kind, root: Path, job: Job = JOB) -> list[tuple[str, str]]:
    steps = schedule.plan(kind, job, root)
    schedule.perform(steps, root)
    return actions(steps, root)


def actions(steps: list[schedule.Step], root: Path) -> list[tuple[str, str]]:
    return [(step.action, str(step.path.relative_to(root))) for step in steps]


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


# The texts


def test_a_crontab_is_as_it_should_be(root: Path) -> None:
    assert install("cron", root) == [("write", CRONTAB)]
    assert (root / CRONTAB).read_text() == AS_CRONTAB
    assert files(root) == {CRONTAB}


def test_the_units_are_as_they_should_be(root: Path) -> None:
    assert install("systemd", root) == [("write", SERVICE), ("write", TIMER)]
    assert (root / SERVICE).read_text() == AS_SERVICE
    assert (root / TIMER).read_text() == AS_TIMER


def test_cron_would_read_the_file(root: Path) -> None:
    old = os.umask(0)
    try:
        install("cron", root)
    finally:
        os.umask(old)
    found = (root / CRONTAB).stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_nlink) == (0o644, os.geteuid(), 1)
    assert "." not in Path(CRONTAB).name


PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=30)


@given(st.lists(PRINTABLE.filter(lambda word: "\\" not in word), min_size=1, max_size=5))
def test_a_shell_gets_from_cron_the_words_that_were_meant(words: list[str]) -> None:
    command = schedule_text.crontab(words, {}).splitlines()[-1].removeprefix("* * * * * root ")
    assert "%" not in command.replace("\\%", "")
    assert shlex.split(command.replace("\\%", "%")) == words


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["/bin/k", "a\nb"], {}),
        (["/bin/k", "a\tb"], {}),
        (["/bin/k", "a\\b"], {}),
        (["/bin/k", "x" * 1000], {}),
        (["/bin/k"], {"X": "a\nroot"}),
        (["/bin/k"], {"X": 'a"b'}),
        (["/bin/k"], {"X": "ends with a space "}),
        (["/bin/k"], {"X": "é" * 500}),
    ],
)
def test_what_cron_cannot_carry_is_refused(words: list[str], environment: dict[str, str]) -> None:
    with pytest.raises(RefusedError) as caught:
        schedule_text.crontab(words, environment)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("words", "environment"),
    [(["/bin/k", "a\nb"], {}), (["/bin/$k"], {}), (["/bin/k"], {"X": "a\nExecStart=/bin/sh"})],
)
def test_what_systemd_cannot_carry_is_refused(words: list[str], environment: dict[str, str]) -> None:
    with pytest.raises(RefusedError) as caught:
        schedule_text.service(words, environment)
    assert caught.value.hint


def test_systemd_gets_specials_escaped() -> None:
    text = schedule_text.service(["/my bin/k", '$HOME %h "q" \\', ";"], {"X": '%h $HOME "q" \\'})
    assert 'ExecStart="/my bin/k" "$$HOME %%h \\"q\\" \\\\" ";"\n' in text
    assert 'Environment="X=%%h $HOME \\"q\\" \\\\"\n' in text


@pytest.mark.parametrize("path", ["/bin/k", "/my 50% bin/k's"])
def test_the_program_is_found_again(path: str) -> None:
    assert schedule_text.program(schedule_text.crontab([path, "%"], {})) == path
    assert schedule_text.program(schedule_text.service([path, "%"], {})) == path
    assert schedule_text.program("* * * * * root 'no end\n") == schedule_text.program("") == ""


# What is done to the files


@as_root
@pytest.mark.parametrize("kind", ["cron", "systemd"])
def test_installing_twice_changes_nothing(root: Path, kind: schedule.Kind) -> None:
    first = install(kind, root)
    stamps = {name: (root / name).stat().st_ino for name in files(root)}
    assert install(kind, root) == [("keep", name) for _, name in first]
    assert {name: (root / name).stat().st_ino for name in files(root)} == stamps


def test_a_mode_that_cron_ignores_is_put_right(root: Path) -> None:
    install("cron", root)
    (root / CRONTAB).chmod(0o666)
    assert install("cron", root) == [("write", CRONTAB)]
    assert (root / CRONTAB).stat().st_mode & 0o777 == 0o644


def test_another_command_replaces_the_first(root: Path) -> None:
    install("cron", root)
    assert install("cron", root, Job(("/bin/other",), {})) == [("write", CRONTAB)]
    assert (root / CRONTAB).read_text() == f"{MARK}* * * * * root /bin/other\n"


def test_one_kind_takes_the_other_s_place(root: Path) -> None:
    install("cron", root)
    assert install("systemd", root)[2:] == [("remove", CRONTAB)]
    assert files(root) == {SERVICE, TIMER}
    assert install("cron", root)[1:] == [("remove", SERVICE), ("remove", TIMER)]
    assert files(root) == {CRONTAB}


def test_uninstalling_removes_both_kinds_and_the_link_that_enables_the_timer(root: Path) -> None:
    install("systemd", root)
    (root / CRONTAB).write_text(AS_CRONTAB)
    wanted = root / "etc/systemd/system/timers.target.wants"
    wanted.mkdir()
    (wanted / Path(TIMER).name).symlink_to(root / TIMER)
    steps = schedule.removals(root)
    assert {step.action for step in steps} == {"remove"}
    schedule.perform(steps, root)
    assert files(root) == set()
    assert schedule.removals(root) == []


@pytest.mark.parametrize("name", [CRONTAB, SERVICE, TIMER])
@pytest.mark.parametrize(
    "text", ["", "* * * * * root kvmctl rebalance\n", "echo written by kvmctl rebalance install\n"]
)
def test_a_file_of_others_is_neither_overwritten_nor_removed(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(ConflictError, match="not kvmctl's") as caught:
        install("cron" if name == CRONTAB else "systemd", root)
    assert caught.value.hint
    assert schedule.removals(root) == []
    assert schedule.foreign(root) == [root / name]
    assert (root / name).read_text() == text
    assert files(root) == {name}


def test_a_masked_timer_and_a_folder_are_not_ours(root: Path) -> None:
    (root / TIMER).symlink_to("/dev/null")
    (root / CRONTAB).mkdir()
    for kind in schedule._FILES:
        with pytest.raises(ConflictError):
            install(kind, root)
    assert set(schedule.foreign(root)) == {root / TIMER, root / CRONTAB}


def test_a_file_of_others_of_the_other_kind_stays(root: Path) -> None:
    (root / CRONTAB).write_text("# mine\n")
    assert install("systemd", root) == [("write", SERVICE), ("write", TIMER)]
    assert (root / CRONTAB).read_text() == "# mine\n"


def test_without_the_folder_the_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(KvmctlError, match=r"cannot write .*/etc/cron\.d/kvmctl: No such file"):
        install("cron", tmp_path)


# What the command is


def test_run_as_a_module_it_needs_neither_folder_nor_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in schedule._FOLDERS:
        monkeypatch.delenv(name, raising=False)
    job = schedule.job(str(Path(schedule.__file__).parents[1] / "__main__.py"), ["list"])
    assert job.words == (sys.executable, "-P", "-m", "kvmctl", "list")
    assert set(job.environment) == {"PATH", "PYTHONPATH"}


def test_run_as_a_program_its_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "kvmctl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVMCTL_STATE_DIR", "state")
    monkeypatch.setenv("KVMCTL_RUN_DIR", "")
    monkeypatch.setenv("KVMCTL_HOST_FILE", "/srv/host.yaml")
    job = schedule.job("bin/kvmctl", ["list"])
    assert job.words == (str(program), "list")
    assert job.environment == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "KVMCTL_STATE_DIR": f"{tmp_path}/state",
        "KVMCTL_HOST_FILE": "/srv/host.yaml",
    }
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert schedule.job("kvmctl", []).words == (str(program),)


def test_a_program_that_needs_this_shell_s_environment_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "kvmctl"
    program.write_text('#!/bin/sh\ntest -n "$LANG$HOME"\n')
    program.chmod(0o755)
    with pytest.raises(KvmctlError, match="does not start") as caught:
        schedule.job(str(program), [])
    done = subprocess.run(["sh", "-c", caught.value.hint.removeprefix("see why: ")], check=False)
    assert done.returncode == 1


def test_a_program_that_another_user_may_change_is_named(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "kvmctl"
    program.parent.mkdir()
    program.touch()
    job = Job((str(program),), {})
    program.parent.chmod(0o777)
    found = schedule.changeable(job)
    assert found is not None
    assert os.geteuid() != 0 or found == program.parent
    program.parent.chmod(0o1777)
    assert schedule.changeable(job) != program.parent


# The doctor


def check(root: Path) -> tuple[str, str]:
    (found,) = doctor.checks(root)
    assert found.next or found.result == "ok"
    return found.result, f"{found.found}: {found.cause}"


def test_the_doctor_says_that_nothing_is_installed(root: Path) -> None:
    assert check(root)[0] == "warn"


@as_root
def test_the_doctor_says_what_keeps_an_entry_from_being_run(root: Path) -> None:
    install("cron", root)
    assert check(root) == (
        "fail",
        f"installed for cron, and not run: {root / CRONTAB}: /usr/local/bin/kvmctl is not there any more",
    )
    install("cron", root, Job(("/bin/sh",), {}))
    result, text = check(root)
    assert result == ("ok" if schedule.cron_runs() else "fail"), text
    (root / CRONTAB).chmod(0o664)
    assert "mode 0664, not 0644" in check(root)[1]


def test_the_doctor_names_an_entry_of_others_and_one_too_many(root: Path) -> None:
    (root / CRONTAB).write_text("# mine\n")
    assert [each.result for each in doctor.checks(root)] == ["unknown", "warn"]
    (root / CRONTAB).unlink()
    install("systemd", root)
    (root / CRONTAB).write_text(AS_CRONTAB)
    result, text = check(root)
    assert (result, "both run" in text) == ("warn", True)
