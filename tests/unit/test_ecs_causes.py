"""Why tasks of ECS do not run, by the very words of Amazon's agents and services."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pestfleet.placement import AmazonPlace, Placement
from pestfleet.targets.ecs.causes import read_event, read_exit, read_stop
from pestfleet.targets.ecs.diagnosis import explain
from pestfleet.targets.ecs.fleet import read_task
from pestfleet.targets.ecs.naming import Names
from pestfleet.targets.troubles import find_dead_end

NAMES = Names("s1")
ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/pestfleet/s1:worker"
BEGAN = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
NOW = BEGAN.timestamp() + 600
PULL = "CannotPullContainerError: "
INIT = "ResourceInitializationError: "
SECRETS = (
    INIT + "unable to pull secrets or registry auth: execution resource retrieval failed: "
    "unable to retrieve secret from asm: service call has been retried "
)
AUTH = SECRETS.replace("secret from asm", "ecr registry auth")

# stoppedReason, with the stop code TaskFailedToStart -> kind, words of the cause, for good?
STARTS = [
    (
        PULL + f"pull image manifest has been retried 5 time(s): failed to resolve ref {ECR}: "
        f'failed to do request: Head "https://{ECR}": dial tcp 52.219.1.2:443: i/o timeout',
        "network",
        "no way from {their} subnet to the image registry",
        True,
    ),
    (
        PULL + "ref pull has been retried 5 time(s): failed to copy: httpReadSeeker: failed open: "
        "failed to do request: Get 6263.dkr.ecr.eu-central-1.amazonaws.com/x:1: dial tcp "
        "52.219.199.138:443: i/o timeout",
        "network",
        "no way from {their} subnet to the images' layers in S3",
        True,
    ),
    (
        PULL + f"pull image manifest has been retried 7 time(s): failed to resolve ref {ECR}: "
        "not found.",
        "image",
        "the registry has no such image",
        True,
    ),
    (
        PULL + "ref pull has been retried 1 time(s): manifest unknown",
        "image",
        "the registry has no such image",
        True,
    ),
    (
        PULL + "pull image manifest has been retried 7 time(s): image Manifest does not contain "
        "descriptor matching platform 'linux/amd64'",
        "image",
        "the image is not for the processor of the machines (linux/amd64)",
        True,
    ),
    (
        PULL + "pull image manifest has been retried 1 time(s): failed to resolve ref "
        f"{ECR}: pulling from host failed with status code [manifests worker]: 403 Forbidden",
        "rights",
        "{their} role may not use the image registry",
        True,
    ),
    (
        PULL + "inspect image has been retried 1 time(s): failed to resolve ref "
        "docker.io/library/rabbitmq:3.13: unexpected status code [manifests 3.13]: "
        "429 Too Many Requests - Server message: toomanyrequests",
        "image",
        "the registry gives out no more for now",
        False,
    ),
    (
        PULL + "write /var/lib/containerd/tmp: no space left on device",
        "disk",
        "the image does not fit on the task's disk",
        True,
    ),
    (
        SECRETS + "5 time(s): failed to fetch secret arn:aws:secretsmanager:eu-central-1:1:secret:"
        "pestfleet/s1/worker-AbCdEf from secrets manager: RequestCanceled: request context "
        "canceled caused by: context deadline exceeded. Please check your task network "
        "configuration.",
        "network",
        "no way from {their} subnet to the session's secrets (Secrets Manager)",
        True,
    ),
    (
        SECRETS
        + "1 time(s): failed to fetch secret arn:aws:secretsmanager:eu-central-1:1:secret:x "
        "from secrets manager: AccessDeniedException: User: arn:aws:sts::1:assumed-role/x/y is not "
        "authorized to perform: secretsmanager:GetSecretValue on resource: arn status code: 400",
        "rights",
        "{their} role may not use the session's secrets (Secrets Manager) "
        "(secretsmanager:GetSecretValue)",
        True,
    ),
    (
        SECRETS + "1 time(s): failed to fetch secret arn:x from secrets manager: "
        "ResourceNotFoundException: Secrets Manager can't find the specified secret.",
        "secret",
        "one of the session's secrets is gone",
        True,
    ),
    (
        AUTH + "3 time(s): RequestError: send request failed caused by: Post "
        '"https://api.ecr.us-east-2.amazonaws.com/": dial tcp 10.0.0.1:443: i/o timeout. Please '
        "check your task network configuration.",
        "network",
        "no way from {their} subnet to the image registry (ECR)",
        True,
    ),
    (
        INIT + "failed to validate logger args: The task cannot find the Amazon CloudWatch log "
        "group defined in the task definition. There is a connection issue between the task and "
        "Amazon CloudWatch. Check your network configuration. : signal: killed",
        "network",
        "no way from {their} subnet to the session's log group (CloudWatch Logs)",
        True,
    ),
    (
        INIT + "failed to validate logger args: create stream has been retried 1 times: failed to "
        "create Cloudwatch log stream: AccessDeniedException: User is not authorized to perform: "
        "logs:CreateLogStream on resource: arn",
        "rights",
        "{their} role may not use the session's log group (CloudWatch Logs) (logs:CreateLogStream)",
        True,
    ),
    (
        "CannotStartContainerError: Error response from daemon: failed to create shim: OCI runtime "
        'create failed: exec: "tini": executable file not found in $PATH: unknown',
        "start",
        "the container cannot be started: executable file not found in $PATH",
        True,
    ),
]


@pytest.mark.parametrize(("reason", "kind", "why", "hopeless"), STARTS)
def test_why_a_task_could_not_start(reason: str, kind: str, why: str, hopeless: bool) -> None:
    cause = read_stop(
        {"stopCode": "TaskFailedToStart", "stoppedReason": reason, "containers": []},
        NAMES,
        "worker",
    )
    assert cause is not None
    assert (cause.kind, cause.why, cause.hopeless) == (kind, why, hopeless)
    assert cause.remedy


def make_stop(
    code: str = "EssentialContainerExited",
    reason: str = "Essential container in task exited",
    exit_code: int | None = None,
    *,
    said: str = "",
    name: str = "worker",
    **more: Any,
) -> dict[str, Any]:
    main: dict[str, Any] = {"name": name, "lastStatus": "STOPPED"}
    main |= {"exitCode": exit_code} if exit_code is not None else {}
    main |= {"reason": said} if said else {}
    others = [{"name": "secrets", "exitCode": 0}] if name != "secrets" else []
    return {"stopCode": code, "stoppedReason": reason, "containers": [*others, main], **more}


@pytest.mark.parametrize(
    ("stop", "kind", "words"),
    [
        (
            make_stop("SpotInterruption", "Your Spot Task was interrupted.", 12),
            "spot",
            "spot capacity",
        ),
        (
            make_stop("TerminationNotice", "Your Spot Task was interrupted.", 137),
            "spot",
            "spot capacity",
        ),
        (
            make_stop(
                exit_code=137,
                said="OutOfMemoryError: Container killed due to memory usage",
                memory="2048",
            ),
            "memory",
            "more than the limit of 2 GB",
        ),
        (make_stop(exit_code=10), "refused", "refused the session"),
        (make_stop(exit_code=11), "exit", "heard nothing from the master"),
        (make_stop(exit_code=1), "exit", "exit code 1"),
        (make_stop(exit_code=139), "exit", "killed by signal 11"),
        (make_stop(exit_code=137), "exit", "killed (exit code 137)"),
        (make_stop(exit_code=1, name="secrets"), "start", "secrets could not be unpacked"),
        (
            make_stop("ServiceSchedulerInitiated", "Task failed container health checks", 143),
            "health",
            "did not answer the health check",
        ),
        (
            make_stop(
                "TaskFailedToStart",
                "ECS was unable to assume the role 'arn:aws:iam::1:role/pestfleet/pestfleet-s1-"
                "execution' that was provided for this task.",
            ),
            "rights",
            "ECS cannot take {their} role pestfleet-s1-execution",
        ),
    ],
)
def test_why_a_task_ended(stop: dict[str, Any], kind: str, words: str) -> None:
    cause = read_stop(stop, NAMES, "worker")
    assert cause is not None and cause.kind == kind
    assert words in cause.why


@pytest.mark.parametrize(
    "stop",
    [
        make_stop(exit_code=0),
        make_stop(exit_code=12),
        make_stop(
            "ServiceSchedulerInitiated", "Scaling activity initiated by (deployment ecs-svc/1)", 12
        ),
        make_stop("ServiceSchedulerInitiated", "Scaling activity initiated by (x)", 137),
        make_stop("UserInitiated", "Task stopped by user"),
    ],
)
def test_what_was_asked_for_is_no_trouble(stop: dict[str, Any]) -> None:
    assert read_stop(stop, NAMES, "worker") is None


def test_memory_says_what_to_type() -> None:
    stop = make_stop(exit_code=137, said="OutOfMemoryError: Container killed", memory="512")
    cause = read_stop(stop, NAMES, "worker")
    assert cause is not None
    assert cause.why == "out of memory: more than the limit of 512 MB"
    assert cause.remedy == "Allow more for a slot, such as --memory 1g"


@pytest.mark.parametrize("code", [0, 12, 130])
def test_masters_that_ended_well(code: int) -> None:
    assert read_exit(code, "master", NAMES) is None


def test_a_master_that_would_end_the_same_way_is_hopeless() -> None:
    cause = read_exit(4, "master", NAMES)
    assert cause is not None and cause.hopeless
    assert "configuration" in cause.why


PLACE = "(service pestfleet-s1-worker) was unable to place a task"


@pytest.mark.parametrize(
    ("message", "spot", "kind", "words", "remedy"),
    [
        (
            f"{PLACE}. Reason: Capacity is unavailable at this time. Please try again later or in "
            "a different availability zone. For more information, see the Troubleshooting section.",
            True,
            "capacity",
            "Fargate Spot has no capacity",
            "--capacity ondemand",
        ),
        (
            f"{PLACE}. Reason: You\u2019ve reached the limit on the number of vCPUs you can run "
            "concurrently.",
            True,
            "quota",
            "quota of vCPUs of Fargate Spot is used up",
            "--quota-code L-36FBB829",
        ),
        (
            f"{PLACE}. Reason: You've reached the limit on the number of vCPUs you can run "
            "concurrently.",
            False,
            "quota",
            "quota of vCPUs of Fargate is used up",
            "--quota-code L-3032A538",
        ),
        (
            f"{PLACE}. Reason: The requested CPU configuration is above your limit.",
            False,
            "quota",
            "no task with so much cores",
            "service-quotas",
        ),
        (
            f"{PLACE}. Reason: Internal error.",
            False,
            "zone",
            "zone without Fargate",
            "other subnets",
        ),
        (
            f"{PLACE} because no container instance met all of its requirements. The closest "
            "matching container-instance 7b has insufficient CPU units available. For more "
            "information, see the Troubleshooting section of the Amazon ECS Developer Guide.",
            False,
            "machine",
            "with so many cores free",
            "--instances",
        ),
        (
            "(service x) was unable to reach steady state. Reason: No Container Instances were "
            "found in your capacity provider.",
            False,
            "machine",
            "there is no machine",
            "Machines are added by themselves",
        ),
        (f"{PLACE}. Reason: RESOURCE:ENI.", False, "machine", "no network interface", "larger"),
        (f"{PLACE}. Reason: RESOURCE:MEMORY.", False, "machine", "with so much memory", "--memory"),
        (
            "(service x) failed to launch a task with (error ECS was unable to assume the role "
            "'arn:aws:iam::1:role/pestfleet/pestfleet-s1-worker' that was provided for this task.)",
            False,
            "rights",
            "ECS cannot take {their} role pestfleet-s1-worker",
            "seconds",
        ),
        (
            "(service x) operations are being throttled. Will try again later.",
            False,
            "throttled",
            "slows down",
            "",
        ),
        (
            f"{PLACE}. Reason: {PULL}pull image manifest has been retried 5 time(s): not found.",
            False,
            "image",
            "no such image",
            "",
        ),
        (
            f"{PLACE}. Reason: The subnet subnet-1 has insufficient free IP addresses.",
            False,
            "network",
            "no free addresses",
            "larger",
        ),
    ],
)
def test_what_a_service_says(message: str, spot: bool, kind: str, words: str, remedy: str) -> None:
    cause = read_event(message, spot=spot)
    assert cause is not None
    assert cause.kind == kind
    assert words in cause.why
    assert remedy in cause.remedy


@pytest.mark.parametrize(
    "message",
    [
        "(service x) has reached a steady state.",
        "(service x) has started 5 tasks: (task 1) (task 2).",
        "(service x) has stopped 2 running tasks: (task 1) (task 2).",
        "(service x) has begun draining connections on 1 tasks.",
    ],
)
def test_a_service_that_does_well_says_nothing(message: str) -> None:
    assert read_event(message, spot=True) is None


# -- together ----------------------------------------------------------------------------------


def make_service(
    desired: int, running: int, *messages: str, pending: int = 0, age: float = 600.0
) -> dict[str, Any]:
    """`messages`: of its events, the newest first."""
    return {
        "desiredCount": desired,
        "runningCount": running,
        "pendingCount": pending,
        "createdAt": datetime.fromtimestamp(NOW - age, UTC),
        "events": [{"message": message} for message in messages],
    }


def make_tasks(
    count: int, stop: dict[str, Any], role: str = "worker", *, after: float = 300
) -> list[Any]:
    return [
        read_task(
            {
                "taskArn": f"arn:aws:ecs:r:1:task/c/{role}{number}",
                "group": f"service:pestfleet-s1-{role}",
                "lastStatus": "STOPPED",
                "desiredStatus": "STOPPED",
                "createdAt": BEGAN + timedelta(seconds=10),
                "stoppedAt": BEGAN + timedelta(seconds=after),
                **stop,
            }
        )
        for number in range(count)
    ]


def explain_all(services: dict[str, Any], tasks: list[Any], **more: Any) -> list[Any]:
    place = Placement(amazon=AmazonPlace(capacity=more.pop("capacity", "spot")))
    return explain(services, tasks, names=NAMES, place=place, now=NOW, **more)


CAPACITY = f"{PLACE}. Reason: Capacity is unavailable at this time."
DENIED = STARTS[9][0]


def test_missing_workers_are_counted() -> None:
    (trouble,) = explain_all({"worker": make_service(10, 6, CAPACITY, pending=1)}, [])
    assert trouble.message.startswith("3 of 10 workers cannot be made: Fargate Spot has no capac")
    assert not trouble.hopeless


def test_a_quota_ends_a_launch_that_can_have_too_few() -> None:
    quota = f"{PLACE}. Reason: You've reached the limit on the number of vCPUs you can run"
    troubles = explain_all({"worker": make_service(10, 4, quota)}, [])
    assert find_dead_end(troubles, wanted=10, least=4) is None
    assert find_dead_end(troubles, wanted=10, least=5) is troubles[0]


def test_a_service_is_given_time_and_what_is_past_is_past() -> None:
    assert explain_all({"worker": make_service(10, 6, CAPACITY, age=10)}, []) == []
    steady = "(service x) has reached a steady state."
    assert explain_all({"worker": make_service(10, 6, steady, CAPACITY)}, []) == []


def test_tasks_that_ended_alike_are_told_together() -> None:
    tasks = make_tasks(3, make_stop("SpotInterruption", "Your Spot Task was interrupted."))
    tasks += make_tasks(1, make_stop(exit_code=0))
    (trouble,) = explain_all({"worker": make_service(10, 10)}, tasks)
    assert (trouble.count, len(trouble.pods)) == (3, 3)
    assert trouble.message.startswith("3 workers ended: Amazon took their spot capacity back")


def test_failed_starts_are_over_when_all_run() -> None:
    stop = make_stop("TaskFailedToStart", STARTS[0][0])
    assert explain_all({"worker": make_service(4, 4)}, make_tasks(4, stop)) == []
    (trouble,) = explain_all({"worker": make_service(4, 3)}, make_tasks(4, stop))
    assert trouble.hopeless and trouble.count == 1
    assert find_dead_end([trouble], wanted=4, least=3) is None


def test_tasks_of_an_earlier_launch_do_not_count() -> None:
    tasks = make_tasks(4, make_stop(exit_code=1))
    assert explain_all({"worker": make_service(4, 4)}, tasks, since=NOW) == []


def test_new_roles_are_given_time() -> None:
    stop = make_stop("TaskFailedToStart", DENIED)
    services = {"broker": make_service(1, 0)}
    (early,) = explain_all(services, make_tasks(1, stop, "broker", after=30))
    (late,) = explain_all(services, make_tasks(1, stop, "broker", after=90))
    assert (early.hopeless, late.hopeless) == (False, True)
    assert find_dead_end([late], wanted=4, least=1) is late


def test_the_end_of_a_log_is_shown_without_its_control_characters() -> None:
    (trouble,) = explain_all(
        {"worker": make_service(2, 1)},
        make_tasks(1, make_stop(exit_code=10)),
        read_tail=lambda task: 'a line\n{"event": "end", "error": "no \x1b[2Jdigest"}',
    )
    assert trouble.tail == ("a line", "no [2Jdigest")
    assert trouble.message.endswith("; its log ends with: no [2Jdigest")


def test_what_all_depend_on_comes_first() -> None:
    tasks = make_tasks(2, make_stop(exit_code=1)) + make_tasks(
        1, make_stop("TaskFailedToStart", STARTS[2][0]), "broker"
    )
    services = {"worker": make_service(2, 0), "broker": make_service(1, 0)}
    assert [trouble.role for trouble in explain_all(services, tasks)] == ["broker", "worker"]
