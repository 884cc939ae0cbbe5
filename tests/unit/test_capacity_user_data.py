"""The scripts of machines, run by bash with stand-ins for the machine's programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pestfleet.capacity.site import Unpacking, WorkerTask
from pestfleet.capacity.user_data import (
    LIMIT,
    set_slots,
    write_member,
    write_plain,
    write_worker,
)
from pestfleet_worker.errors import ConfigurationError

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:pestfleet/s1/worker-AbCdEf"
TASK = WorkerTask(
    image=f"{REGISTRY}/pestfleet/s1:worker",
    command=("--session", "s1", "--slots", "1"),
    unpacking=Unpacking(
        secret=ARN,
        variable="PESTFLEET_SECRET_FILES",
        image=f"{REGISTRY}/pestfleet/s1:worker",
        entrypoint=("/opt/pestfleet/bin/python", "-m", "pestfleet_worker.unpack"),
        command=("/secrets",),
    ),
    environment={"PESTFLEET_BROKER_FILE": "/secrets/broker-url", "NOTE": "it's $HOME"},
    logs={"awslogs-group": "/pestfleet/s1", "awslogs-stream-prefix": "worker"},
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Each stand-in notes its words, one a line, and what the script gave it in its environment; one
# after the other, for some run at the same time.
NOTE = """#!/bin/bash
exec 8>"$CALLS.lock"; flock 8
printf '%s\\n' "${0##*/}" "${@/#/  }" "  (${PESTFLEET_SECRET_FILES-})" >>"$CALLS"
exec 8>&-
"""
DOCKER = """
case "$1" in
    login) cat >/dev/null ;;
    run)
        case "$*" in *pestfleet_worker.unpack*) exit "${UNPACK-0}" ;; esac
        until [ "$(grep -c "${SIGN-run}" "$CALLS")" -ge "${TIMES-0}" ]; do /bin/sleep 0.05; done
        read -r code <"$CODES"; sed -i 1d "$CODES"; exit "${code:-0}" ;;
    inspect) echo "${HEALTH-healthy}" ;;
esac
"""
SLEEP = """
[ "$1" = 60 ] && exec /bin/sleep "${MINUTE-0.2}"
exit 0
"""
AWS = """
case "$*" in
    *get-login-password*) echo TOKEN ;;
    *get-secret-value*) echo '{"broker-url": "amqps://w:hunter2@broker"}' ;;
    *describe-services*) read -r answer <"$CODES"; sed -i 1d "$CODES"; echo "$answer"
        case "$answer" in *Exception*) exit 254 ;; esac ;;
esac
"""
CURL = """
case "$*" in
    *api/token*) echo token ;;
    *instance-id*) echo i-0abc ;;
    *instance-life-cycle*) echo "${CYCLE-on-demand}" ;;
    *instance-action*) exit "${NOTICE-22}" ;;
esac
"""


@dataclass
class FakeMachine:
    """A folder with stand-ins. `calls`: program -> the words of each of its calls."""

    folder: Path

    def run(self, script: str, *codes: str, **environment: str) -> dict[str, list[list[str]]]:
        """Run what the user data leaves to systemd. `codes`: of the worker, time by time."""
        found = re.search(r"<<'END_OF_WORK'\n(.*)END_OF_WORK", script, re.DOTALL)
        assert found is not None
        work = self.folder / "work"
        text = found[1].replace("/run/pestfleet", str(self.folder / "run"))
        work.write_text(text.replace("/dev/console", str(self.folder / "console")))
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        programs = {"docker": DOCKER, "aws": AWS, "curl": CURL, "systemctl": "", "chown": "",
                    "sleep": SLEEP, "dnf": "", "yum": ""}  # fmt: skip
        for name, body in programs.items():
            path = self.folder / name
            path.write_text(NOTE + body)
            path.chmod(0o755)
        subprocess.run(
            ["bash", str(work)],
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "CALLS": str(self.folder / "calls"),
                "CODES": str(self.folder / "codes"),
                **environment,
            },
            check=True,
            timeout=60,
            capture_output=True,  # so it is over when the last of its processes is
        )
        calls: dict[str, list[list[str]]] = {}
        for line in (self.folder / "calls").read_text().splitlines():
            if line.startswith("  "):
                calls[name][-1].append(line[2:])
            else:
                name = line
                calls.setdefault(name, []).append([])
        return calls

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    (tmp_path / "run").mkdir()
    return FakeMachine(tmp_path)


def write(task: WorkerTask = TASK, slots: int = 4) -> str:
    return write_worker(task, slots=slots, region="eu-central-1", hours=12)


def runs_of(calls: dict[str, list[list[str]]], *, unpack: bool = False) -> list[list[str]]:
    """The words of `docker run`: of the worker, or of what writes its secrets."""
    return [
        words
        for words in calls["docker"]
        if words[0] == "run" and ("pestfleet_worker.unpack" in words) == unpack
    ]


def ends(calls: dict[str, list[list[str]]]) -> int:
    return sum("poweroff" in words for words in calls.get("systemctl", ()))


SCRIPTS = [write(), write_member("c", "s", region="eu-central-1", hours=12), write_plain(hours=12)]


@pytest.mark.parametrize("script", SCRIPTS, ids=["worker", "cluster", "none"])
def test_scripts_are_sound(script: str, tmp_path: Path) -> None:
    for text in [script, *re.findall(r"<<'END_OF_WORK'\n(.*)END_OF_WORK", script, re.DOTALL)]:
        (tmp_path / "script").write_text(text)
        subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)
    assert len(script.encode()) < LIMIT
    # The limit is armed before anything else is tried.
    assert "OnBootSec=43200\n" in script
    first = script.index("systemctl enable --now pestfleet-limit.timer || shutdown -P +720")
    assert first < len(script) - script[::-1].index("ecs"[::-1])
    assert all(first < script.index(word) for word in ("docker", "aws ") if word in script)


def test_a_worker_runs_as_its_task_says_until_its_session_is_over(machine: FakeMachine) -> None:
    calls = machine.run(write(), "0")
    (words,) = runs_of(calls)
    image = words.index(TASK.image)
    assert words[image + 1 : -1] == ["--session", "s1", "--slots", "4"]
    options = words[:image]
    assert "NOTE=it's $HOME" in options
    assert "awslogs-stream=worker/machine/i-0abc" in options
    for option in ("--read-only", "ALL", "no-new-privileges", "10001:10001"):
        assert option in options
    assert not {"--privileged", "--network"} & set(options)
    assert f"{machine.folder}/run/secrets:/secrets:ro" in options
    assert ends(calls) == 1
    assert "the session is over" in machine.console


def test_only_who_writes_the_secrets_gets_them_and_no_command_line_has_them(
    machine: FakeMachine,
) -> None:
    calls = machine.run(write(), "0")
    (words,) = runs_of(calls, unpack=True)
    assert "hunter2" in words.pop()  # its environment
    assert words[-4:] == [TASK.image, "-m", "pestfleet_worker.unpack", "/secrets"]
    assert words[words.index("--entrypoint") + 1] == "/opt/pestfleet/bin/python"
    assert words[words.index("--network") + 1] == "none"
    assert not [word for call in calls.values() for said in call for word in said[:-1]
                if "hunter2" in word]  # fmt: skip
    assert runs_of(calls)[0][-1] == "()"
    (login,) = [words for words in calls["docker"] if words[0] == "login"]
    assert login[:-1] == ["login", "--username", "AWS", "--password-stdin", REGISTRY]


@pytest.mark.parametrize(
    ("codes", "runs", "reason"),
    [
        (("0",), 1, "the session is over"),
        (("10",), 1, "does not fit"),
        (("11", "11"), 2, "the master is gone"),
        (("12", "1", "137", "0"), 4, "the session is over"),  # it is started again
        (("11", "12", "11", "0"), 4, "the session is over"),
        (("1",) * 20, 10, "ends at once"),
    ],
)
def test_what_a_worker_s_end_means_for_its_machine(
    machine: FakeMachine, codes: tuple[str, ...], runs: int, reason: str
) -> None:
    calls = machine.run(write(), *codes)
    assert len(runs_of(calls)) == runs
    assert ends(calls) == 1
    assert reason in machine.console


def test_a_machine_that_cannot_work_ends(machine: FakeMachine) -> None:
    calls = machine.run(write(), UNPACK="1")
    assert runs_of(calls) == []
    assert len(runs_of(calls, unpack=True)) == 10
    assert ends(calls) == 1


def test_a_spot_machine_that_is_taken_back_gives_its_runs_back(machine: FakeMachine) -> None:
    # The stand-in of the worker ends with 12 each time, as after SIGTERM.
    calls = machine.run(write(), *["12"] * 10, CYCLE="spot", NOTICE="0", SIGN="^  stop$", TIMES="1")
    assert ["stop", "-t", "110", "pestfleet-worker", "()"] in calls["docker"]
    assert len(runs_of(calls)) <= 10
    assert "takes this spot machine back" in machine.console


@pytest.mark.parametrize(
    ("health", "sign", "times", "finished"),
    [("unhealthy", "poweroff", 1, 1), ("healthy", "inspect", 31, 0)],
)
def test_a_machine_whose_broker_stays_away_ends(
    machine: FakeMachine, health: str, sign: str, times: int, finished: int
) -> None:
    # The worker runs until that many calls have been noted.
    calls = machine.run(write(), "0", HEALTH=health, MINUTE="0", SIGN=sign, TIMES=str(times))
    assert ("away for half an hour" in machine.console) == finished
    assert ends(calls) == 1 + finished  # and with the worker's end


@pytest.mark.parametrize(
    ("answers", "looks"),
    [
        (("2", "0", "0.0", "0"), 4),
        (("0", "0", "3", "0", "0", "0"), 6),
        (("0", "Could not connect", "", "0", "0"), 5),  # an answer that is none decides nothing
        (("An error occurred (ClusterNotFoundException)",) * 3, 3),
    ],
)
def test_a_member_of_a_cluster_ends_when_no_workers_are_wanted_any_more(
    machine: FakeMachine, answers: tuple[str, ...], looks: int
) -> None:
    script = write_member("pestfleet-s1", "pestfleet-s1-worker", region="eu-central-1", hours=1)
    calls = machine.run(script, *answers)
    asked = [words for words in calls["aws"] if "describe-services" in words]
    assert len(asked) == looks
    assert ends(calls) == 1


def test_slots_are_those_of_the_machine() -> None:
    assert set_slots(["--slots", "1", "--session", "s1"], 8) == ["--session", "s1", "--slots", "8"]
    assert set_slots([], 2) == ["--slots", "2"]


def test_user_data_that_is_too_long_is_refused() -> None:
    task = WorkerTask("image", (), TASK.unpacking, environment={"LONG": "x" * LIMIT})
    with pytest.raises(ConfigurationError, match="user data would have"):
        write(task)
