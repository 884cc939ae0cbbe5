"""Task definitions of a session: by boto3's models, by Fargate's rules, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pestfleet.cli.main import cli
from pestfleet.costs.charges import Charge
from pestfleet.folder import SessionSpec
from pestfleet.images.context import FILES
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.targets.ecs.sizes import FARGATE, Size, choose_sizes, fit_fargate, parse_mebibytes
from pestfleet.targets.ecs.tasks import (
    INIT,
    SECRET_FILES,
    Images,
    TaskPlan,
    list_charges,
    make_tasks,
    write_host_words,
)
from pestfleet_worker import unpack
from pestfleet_worker.errors import ConfigurationError

IMAGES = Images("reg/case:1", "rabbitmq:3.13", "reg/master:1", "reg/tunnel:1")
ROLES = ("broker", "master", "worker", "tunnel")

# Amazon ECS developer guide, "Amazon ECS task definition differences for Fargate".
NOT_ON_FARGATE = {
    "disableNetworking", "dnsSearchDomains", "dnsServers", "dockerSecurityOptions", "extraHosts",
    "links", "privileged", "hostname", "ulimits",
}  # fmt: skip


def make_spec(place: Placement | None = None, **more: Any) -> SessionSpec:
    values: dict[str, Any] = {
        "session": "s1",
        "control_file": "/home/me/model/ok.pst",
        "digest": "d" * 64,
        "engine": "glm",
        "target": "ecs",
        "workers": 4,
        "slots": 1,
        "place": place or Placement(master="there", tunnel=True),
    }
    return SessionSpec(**(values | more))


def make_plan(spec: SessionSpec | None = None, **more: Any) -> TaskPlan:
    values: dict[str, Any] = {
        "spec": spec or make_spec(),
        "images": IMAGES,
        "account": "123456789012",
        "region": "eu-central-1",
        "bucket": "b",
    }
    return TaskPlan(**(values | more))


def list_plans() -> Iterator[Any]:
    yield pytest.param(make_plan(), id="fargate")
    large = Placement(master="there", memory="7g", cpus=3.5, amazon=AmazonPlace(public=True))
    yield pytest.param(
        make_plan(make_spec(large, slots=4, workers=200, most=900), case_bytes=30 * 2**30),
        id="large",
    )
    machines = Placement(master="there", amazon=AmazonPlace(instances="c7i.4xlarge"))
    yield pytest.param(make_plan(make_spec(machines, slots=16)), id="ec2")
    here = Placement(master="here")
    yield pytest.param(make_plan(make_spec(here), images=replace(IMAGES, master="")), id="here")


plans = pytest.mark.parametrize("plan", list(list_plans()))


def get(task: dict[str, Any], name: str) -> dict[str, Any]:
    """A container of a task."""
    (found,) = [one for one in task["containerDefinitions"] if one["name"] == name]
    return dict(found)


@pytest.fixture(scope="module")
def ecs() -> Any:
    import boto3

    return boto3.client(
        "ecs", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="s"
    )


@plans
def test_every_request_is_right_by_the_model(plan: TaskPlan, ecs: Any) -> None:
    from botocore.validate import ParamValidator

    shape = ecs.meta.service_model.operation_model("RegisterTaskDefinition").input_shape
    for request in make_tasks(plan).values():
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
        for role in request["containerDefinitions"]:
            _check_enums(role, shape.members["containerDefinitions"].member)


def _check_enums(value: Any, shape: Any) -> None:
    """boto3 sends any text where the service knows some words only."""
    if shape.type_name == "structure":
        for name, part in value.items():
            _check_enums(part, shape.members[name])
    elif shape.type_name == "list":
        for part in value:
            _check_enums(part, shape.member)
    elif shape.type_name == "string" and shape.enum:
        assert value in shape.enum


@plans
def test_fargate_can_run_what_is_for_it(plan: TaskPlan) -> None:
    tasks = make_tasks(plan)
    for request in tasks.values():
        if request["requiresCompatibilities"] != ["FARGATE"]:
            continue
        least, most, step = FARGATE[int(request["cpu"])]
        memory = int(request["memory"])
        assert least <= memory <= most and memory % step == 0
        assert request["networkMode"] == "awsvpc" and "executionRoleArn" in request
        if "ephemeralStorage" in request:
            assert 21 <= request["ephemeralStorage"]["sizeInGiB"] <= 200
        assert not any("dockerVolumeConfiguration" in one for one in request["volumes"])
        for container in request["containerDefinitions"]:
            assert not NOT_ON_FARGATE & container.keys()
            parameters = container["linuxParameters"]
            assert not {"devices", "sharedMemorySize", "tmpfs"} & parameters.keys()
            assert "add" not in parameters["capabilities"]
            assert 2 <= container.get("stopTimeout", 30) <= 120
    kind = "EC2" if plan.spec.place.amazon.instances else "FARGATE"
    assert tasks["worker"]["requiresCompatibilities"] == [kind]


@plans
def test_every_container_is_without_rights(plan: TaskPlan) -> None:
    for request in make_tasks(plan).values():
        for container in request["containerDefinitions"]:
            assert container["user"] == "10001:10001"
            assert container["readonlyRootFilesystem"] is True
            assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
            ec2 = request["requiresCompatibilities"] == ["EC2"]
            assert container.get("dockerSecurityOptions") == (
                ["no-new-privileges"] if ec2 else None
            )


@plans
def test_a_secret_is_known_to_the_container_that_unpacks_it_alone(plan: TaskPlan) -> None:
    for role, request in make_tasks(plan).items():
        init, main = request["containerDefinitions"]
        assert (init["name"], main["name"]) == (INIT, role)
        arn = f"arn:aws:secretsmanager:eu-central-1:123456789012:secret:pestfleet/s1/{role}"
        assert init["secrets"] == [{"name": SECRET_FILES, "valueFrom": f"{arn}-??????"}]
        assert SECRET_FILES == unpack.VARIABLE
        assert init["essential"] is False and main["essential"] is True
        assert main["dependsOn"] == [{"containerName": INIT, "condition": "SUCCESS"}]
        assert "secrets" not in main and "environment" not in init
        own = {mount["sourceVolume"]: mount for mount in main["mountPoints"]}
        assert own[INIT] == {
            "sourceVolume": INIT, "containerPath": "/secrets", "readOnly": True,
        }  # fmt: skip
        volumes = {volume["name"] for volume in request["volumes"]}
        assert own.keys() == volumes
        assert {mount["sourceVolume"] for mount in init["mountPoints"]} <= volumes


def test_the_secret_of_a_role_is_named_in_full_once_it_is_made() -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:1:secret:pestfleet/s1/worker-AbCdEf"
    task = make_tasks(make_plan(secrets={"worker": arn}))["worker"]
    assert get(task, INIT)["secrets"][0]["valueFrom"] == arn


def test_what_is_written_to_is_a_volume_of_its_image() -> None:
    """Fargate gives owner and mode of the image's folder to those that are named as VOLUME."""
    for role in ("master", "worker", "tunnel"):
        lines = (FILES / role / "Dockerfile").read_text().splitlines()
        (words,) = [line.removeprefix("VOLUME ") for line in lines if line.startswith("VOLUME")]
        task = make_tasks(make_plan())[role]
        mounted = {mount["containerPath"] for mount in get(task, role)["mountPoints"]}
        assert mounted == set(json.loads(words))


def test_roles_of_iam_and_log_are_the_session_s() -> None:
    plan = make_plan(partition="aws-cn", tags={"owner": "me", "expires": "", "folder": "/a"})
    tasks = make_tasks(plan)
    for role, request in tasks.items():
        prefix = "arn:aws-cn:iam::123456789012:role/pestfleet/pestfleet-s1"
        assert request["executionRoleArn"] == f"{prefix}-execution"
        assert request.get("taskRoleArn") == (
            f"{prefix}-{role}" if role in ("master", "worker") else None
        )
        assert request["family"] == f"pestfleet-s1-{role}"
        options = get(request, role)["logConfiguration"]["options"]
        assert options["awslogs-group"] == "/pestfleet/s1"
        assert options["awslogs-stream-prefix"] == role
        tags = {tag["key"]: tag["value"] for tag in request["tags"]}
        assert tags == {
            "pestfleet:session": "s1",
            "pestfleet:role": role,
            "pestfleet:owner": "me",
            "pestfleet:folder": "/a",
        }


def test_tasks_are_those_that_the_session_wants() -> None:
    assert tuple(make_tasks(make_plan())) == ROLES
    here = make_spec(Placement(master="here"))
    assert tuple(make_tasks(make_plan(here, images=Images("c", "b")))) == ("broker", "worker")
    assert tuple(make_tasks(make_plan(here, images=Images("c")))) == ("worker",)


def test_without_a_master_there_the_worker_s_image_unpacks() -> None:
    here = make_spec(Placement(master="here"))
    tasks = make_tasks(make_plan(here, images=Images("case", "rabbit")))
    assert {get(task, INIT)["image"] for task in tasks.values()} == {"case"}
    assert get(make_tasks(make_plan())["broker"], INIT)["image"] == IMAGES.master


def test_workers_are_never_ended_for_their_health() -> None:
    """A drained worker, and one whose broker is away, shows none."""
    tasks = make_tasks(make_plan())
    assert "healthCheck" not in get(tasks["worker"], "worker")
    for role in ("broker", "master", "tunnel"):
        check = get(tasks[role], role)["healthCheck"]
        assert check["command"][0] in ("CMD", "CMD-SHELL")
        # API reference, HealthCheck.
        assert 5 <= check["interval"] <= 300 and 2 <= check["timeout"] <= 60
        assert 1 <= check["retries"] <= 10 and 0 <= check["startPeriod"] <= 300


@pytest.mark.parametrize(
    ("cpus", "memory", "size"),
    [
        (0.25, 512, (256, 512)),
        (0.1, 1100, (256, 2048)),
        (0.25, 2049, (512, 3072)),
        (1.0, 2048, (1024, 2048)),
        (1.0, 100, (1024, 2048)),
        (1.01, 100, (2048, 4096)),
        (4.0, 30721, (8192, 32768)),
        (8.0, 16385, (8192, 20480)),
        (16.0, 122880, (16384, 122880)),
    ],
)
def test_sizes_are_rounded_up_to_what_fargate_has(
    cpus: float, memory: float, size: tuple[int, int]
) -> None:
    found = fit_fargate(cpus, memory)
    assert (found.cpu, found.memory) == size


@pytest.mark.parametrize(("cpus", "memory"), [(16.1, 512), (1.0, 122881)])
def test_what_is_too_large_for_fargate_is_refused_with_the_limits(
    cpus: float, memory: float
) -> None:
    with pytest.raises(ConfigurationError, match="up to 16 vCPU and 120 GiB") as caught:
        fit_fargate(cpus, memory, slots=3)
    assert "for 3 slots" in caught.value.message
    assert "--instances" in caught.value.remedy


def test_a_worker_has_what_its_slots_need() -> None:
    place = Placement(master="there", memory="1500m", cpus=0.5)
    assert choose_sizes(make_spec(place, slots=3))["worker"] == Size(2048, 5120)
    assert choose_sizes(make_spec())["worker"] == Size(1024, 2048)
    machine = Placement(master="there", cpus=24, amazon=AmazonPlace(instances="m7i.8xlarge"))
    assert choose_sizes(make_spec(machine))["worker"] == Size(24576, 2048)
    with pytest.raises(ConfigurationError, match="24 vCPU"):
        make_tasks(make_plan(make_spec(Placement(master="there", cpus=24))))


def test_the_disk_holds_the_slots_copies_of_the_case() -> None:
    assert choose_sizes(make_spec(slots=4), case_bytes=2**20)["worker"].disk == 20
    sizes = choose_sizes(make_spec(slots=4), case_bytes=5 * 2**30)
    assert sizes["worker"].disk == 6 + 5 * 9 and sizes["broker"].disk == 20
    assert choose_sizes(make_spec(slots=9), case_bytes=2**40)["worker"].disk == 200
    task = make_tasks(make_plan(make_spec(slots=4), case_bytes=5 * 2**30))["worker"]
    assert task["ephemeralStorage"] == {"sizeInGiB": 51}


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("2g", 2048), ("512m", 512), ("1048576", 1), ("1.5GB", 1536), ("1024k", 1), ("1t", 2**20)],
)
def test_sizes_are_read_as_docker_does(text: str, mebibytes: float) -> None:
    assert parse_mebibytes(text) == mebibytes


def test_charges_of_fargate() -> None:
    place = Placement(master="there", amazon=AmazonPlace(capacity="mixed:25", public=True))
    charges = list_charges(make_plan(make_spec(place), case_bytes=10 * 2**30))
    worker = {charge.item: charge.amount for charge in charges["worker"]}
    assert worker == {
        "fargate-vcpu-hour": 0.25,
        "fargate-gb-hour": 0.5,
        "fargate-spot-vcpu-hour": 0.75,
        "fargate-spot-gb-hour": 1.5,
        "fargate-disk-gb-hour": 16,
        "public-ipv4-hour": 1.0,
    }
    master = {charge.item: charge.amount for charge in charges["master"]}
    assert master == {
        "fargate-vcpu-hour": 1.0,
        "fargate-gb-hour": 4.0,
        "fargate-disk-gb-hour": 16,
        "public-ipv4-hour": 1.0,
    }
    assert charges["broker"][0] == Charge("fargate-vcpu-hour", 0.5, "broker", "0.5 vCPU on Fargate")
    spot = list_charges(make_plan())["worker"]
    assert [charge.item for charge in spot] == ["fargate-spot-vcpu-hour", "fargate-spot-gb-hour"]


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        ("spot", {"ec2-spot:c7i.large-hour": 0.5}),
        ("ondemand", {"ec2:c7i.large-hour": 0.5}),
        ("mixed:20", {"ec2:c7i.large-hour": 0.1, "ec2-spot:c7i.large-hour": 0.4}),
    ],
)
def test_charges_of_machines(capacity: str, expected: dict[str, float]) -> None:
    place = Placement(
        master="there", amazon=AmazonPlace(capacity=capacity, instances="c7i.large", public=True)
    )
    charges = list_charges(make_plan(make_spec(place)), per_machine=2)
    found = {charge.item: charge.amount for charge in charges["worker"]}
    assert found == pytest.approx(expected)


def test_the_words_of_the_master_are_understood() -> None:
    """All that are given are options of `pestfleet host`."""
    spec = make_spec(
        workers=2, most=9, idle_minutes=20.0, max_hours=1.5, budget=12.5, cache="s3://b/cache"
    )
    words = write_host_words(make_plan(spec, launch="ab12"))
    assert words[:2] == ["host", "/session/s1/case/ok.pst"]
    host = cli.get_command(None, "host")  # type: ignore[arg-type]
    assert host is not None
    # As the main command has it: a command keeps its help option for good.
    context = host.make_context("host", words[1:], help_option_names=["-h", "--help"])
    given = {name: value for name, value in context.params.items() if value not in (None, {})}
    assert given["name"] == "s1" and given["launch"] == "ab12" and given["on"] == "ecs"
    assert given["workers"] == "2..9" and given["keep_workers"] is True
    assert (given["idle_minutes"], given["max_hours"], given["budget"]) == (20.0, 1.5, 12.5)
    assert given["store"] == "s3://b" and given["ecs"] == "pestfleet-s1"
    assert given["lease"] == "pestfleet-s1" and given["cache"] == "s3://b/cache"
    assert given["advertise"] == "master.s1.pestfleet.internal"
    assert given["case"] == Path("/session/s1/case/ok.pst")


def test_a_cache_of_this_machine_is_none_there() -> None:
    assert write_host_words(make_plan(make_spec(cache="/home/me/cache")))[-1] == "--no-cache"
