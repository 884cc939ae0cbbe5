"""Plans of what a session makes in an account. Nobody is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amazon_account import ACCOUNT, LAUNCHED, MACHINE, MADE, make_facts, make_spec, plan_for
from pestfleet.targets.ecs.naming import EXPIRES, FOLDER, OWNER, ROLE, SESSION, as_dict
from pestfleet.targets.ecs.plan import AmazonPlan, Machine, Network
from pestfleet.targets.ecs.resources.catalogue import KINDS, REMOVAL
from pestfleet_worker.errors import ConfigurationError


def find_tags(body: dict[str, Any]) -> dict[str, str]:
    """The tags of a request, whichever way its service writes them."""
    if "TagSpecifications" in body:
        return as_dict(body["TagSpecifications"][0]["Tags"])
    tags = body.get("Tags", body.get("tags"))
    return dict(tags) if isinstance(tags, dict) else as_dict(tags)


def find_index(plan: AmazonPlan, kind: str) -> int:
    return [one.kind for one in plan.resources].index(kind)


def find_service(plan: AmazonPlan, role: str) -> dict[str, Any]:
    return next(one.body for one in plan.find("service") if one.role == role)


def every_plan() -> list[AmazonPlan]:
    return [
        plan_for(make_spec()),
        plan_for(make_spec(network="make"), make_facts(MADE)),
        plan_for(make_spec(instances="c7i.4xlarge"), make_facts(machine=MACHINE)),
        plan_for(make_spec(master="here", tunnel=True, allow_from="192.0.2.1/32")),
        plan_for(make_spec(mode="agent", cluster="shared", bucket="theirs")),
    ]


def test_the_lease_is_made_before_anything_that_costs() -> None:
    for plan in every_plan():
        kinds = [one.kind for one in plan.resources]
        costly = next(i for i, one in enumerate(plan.resources) if one.charges)
        last = max(i for i, kind in enumerate(kinds) if kind == "schedule")
        assert kinds[0] == "schedule-group"
        assert last < costly
        assert last < kinds.index("service")


def test_references_are_of_what_is_made_before() -> None:
    def list_references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [r for part in value.values() for r in list_references(part)]
        if isinstance(value, list):
            return [r for part in value for r in list_references(part)]
        return value.split(",") if isinstance(value, str) and value.startswith("@") else []

    for plan in every_plan():
        made: set[str] = set()
        for one in plan.resources:
            assert set(list_references(one.body)) <= made, one
            made.add(one.reference)
            assert set(list_references([body for _, body in one.more])) <= made, one


def test_every_resource_is_tagged_with_the_request_that_makes_it() -> None:
    untagged = {"schedule", "bucket", "security-group-ingress", "security-group-egress"}
    for plan in every_plan():
        for one in plan.resources:
            if one.kind in untagged:
                continue  # of the group, and shared
            tags = find_tags(one.body)
            assert tags[SESSION] == "s1", one
            assert tags[OWNER] == "ann"
            assert tags[EXPIRES] == "2027-01-15T13:00:00Z"
            assert tags[FOLDER] == "/home/ann/.pestfleet/s1"
            assert tags.get(ROLE, "") == one.role, one


def test_a_session_without_limit_of_time_does_not_expire() -> None:
    plan = plan_for(make_spec(max_hours=0.0))

    assert all(EXPIRES not in find_tags(one.body) for one in plan.find("service"))


def test_every_service_has_a_schedule_that_stops_it() -> None:
    plan = plan_for(make_spec())

    targets = [json.loads(one.body["Target"]["Input"]) for one in plan.find("schedule")]

    assert targets == [
        {"Cluster": "pestfleet-s1", "Service": f"pestfleet-s1-{role}", "DesiredCount": 0}
        for role in ("broker", "master", "worker")
    ]
    for one in plan.find("schedule"):
        assert one.body["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:ecs:updateService"
        assert one.body["ScheduleExpression"] == "at(2027-01-15T09:00:00)"
        assert one.body["ActionAfterCompletion"] == "NONE"


def test_a_lease_is_never_longer_than_the_session() -> None:
    plan = plan_for(make_spec(max_hours=0.5))

    (expression, *_) = {one.body["ScheduleExpression"] for one in plan.find("schedule")}
    assert expression == "at(2027-01-15T08:30:00)"
    assert plan.latest == LAUNCHED + 1800


@pytest.mark.parametrize(
    ("capacity", "strategy"),
    [
        ("spot", [("FARGATE_SPOT", 1)]),
        ("ondemand", [("FARGATE", 1)]),
        ("mixed:20", [("FARGATE", 1), ("FARGATE_SPOT", 4)]),
        ("mixed:33", [("FARGATE", 33), ("FARGATE_SPOT", 67)]),
        ("mixed:0", [("FARGATE_SPOT", 1)]),
        ("mixed:100", [("FARGATE", 1)]),
    ],
)
def test_capacity_is_of_workers_alone(capacity: str, strategy: list[tuple[str, int]]) -> None:
    plan = plan_for(make_spec(capacity=capacity))

    found = find_service(plan, "worker")["capacityProviderStrategy"]
    assert [(one["capacityProvider"], one["weight"]) for one in found] == strategy
    for role in ("broker", "master"):
        provider = {"capacityProvider": "FARGATE", "weight": 1}
        assert find_service(plan, role)["capacityProviderStrategy"] == [provider]


def test_services_start_what_they_are_asked_for() -> None:
    plan = plan_for(make_spec(workers=7))

    counts = {one.role: one.body["desiredCount"] for one in plan.find("service")}
    assert counts == {"broker": 1, "master": 1, "worker": 7}
    for one in plan.find("service"):
        deployment = {"minimumHealthyPercent": 0, "maximumPercent": 100}
        assert one.body["deploymentConfiguration"] == deployment
        assert one.body["networkConfiguration"]["awsvpcConfiguration"] == {
            "subnets": ["subnet-1", "subnet-2"],
            "securityGroups": [f"@security-group/pestfleet-s1-{one.role}"],
            "assignPublicIp": "DISABLED",
        }


def test_public_addresses_only_where_asked_for() -> None:
    network = Network("vpc-1", ("subnet-1",), public=True, blocks=("10.0.0.0/16",))
    plan = plan_for(make_spec(public=True), make_facts(network))

    for one in plan.find("service"):
        configuration = one.body["networkConfiguration"]["awsvpcConfiguration"]
        assert configuration["assignPublicIp"] == "ENABLED"


def test_what_is_shared_is_not_made() -> None:
    plan = plan_for(make_spec(cluster="shared", bucket="theirs"))

    assert not any(plan.find("cluster"))
    assert not any(plan.find("bucket"))
    assert (plan.cluster, plan.bucket) == ("shared", "theirs")
    assert {one.body["cluster"] for one in plan.find("service")} == {"shared"}
    tags = find_tags(next(plan.find("schedule-group")).body)
    assert tags["pestfleet:cluster"] == "shared"


def test_no_names_are_made_that_nobody_looks_for() -> None:
    plan = plan_for(make_spec(), make_facts(broker_port=5671), broker=False)

    assert not any(plan.find("dns-namespace"))
    assert [one.role for one in plan.find("service")] == ["master", "worker"]


def test_agents_find_their_master_by_name() -> None:
    plan = plan_for(make_spec(mode="agent"))

    names = [one.name for one in plan.find("dns-service")]
    assert names == ["broker.s1.pestfleet.internal", "master.s1.pestfleet.internal"]
    registry = find_service(plan, "master")["serviceRegistries"]
    assert registry == [{"registryArn": "@dns-service/master.s1.pestfleet.internal"}]
    assert "serviceRegistries" not in find_service(plan, "worker")


def test_machines_are_as_many_as_the_workers_need() -> None:
    spec = make_spec(instances="c7i.4xlarge", capacity="mixed:20", workers=20)
    plan = plan_for(spec, make_facts(machine=MACHINE))

    (group,) = plan.find("auto-scaling-group")
    # Seven on each: a machine has eight network interfaces, and needs one itself.
    assert (group.body["MinSize"], group.body["MaxSize"]) == (0, 3)
    distribution = group.body["MixedInstancesPolicy"]["InstancesDistribution"]
    assert distribution["OnDemandPercentageAboveBaseCapacity"] == 20
    assert group.body["NewInstancesProtectedFromScaleIn"]
    (template,) = plan.find("launch-template")
    data = template.body["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert all(disk["Ebs"]["Encrypted"] for disk in data["BlockDeviceMappings"])
    provider = {"capacityProvider": "pestfleet-s1", "weight": 1}
    assert find_service(plan, "worker")["capacityProviderStrategy"] == [provider]
    assert "platformVersion" not in find_service(plan, "worker")


def test_a_machine_that_holds_no_worker_is_refused() -> None:
    small = make_facts(machine=Machine("t3.nano", 2, 512, 2))

    with pytest.raises(ConfigurationError, match=r"t3\.nano.*does not hold"):
        plan_for(make_spec(instances="t3.nano"), small)


def test_a_network_of_its_own_has_no_way_to_the_internet() -> None:
    plan = plan_for(make_spec(network="make"), make_facts(MADE))

    kinds = {one.kind for one in plan.resources}
    assert {"vpc", "subnet", "route-table", "vpc-endpoint"} <= kinds
    services = {one.body["ServiceName"].rpartition("eu-central-1.")[2]: one.body
                for one in plan.find("vpc-endpoint")}  # fmt: skip
    assert set(services) == {
        "s3", "ecr.api", "ecr.dkr", "logs", "secretsmanager", "ecs", "scheduler"
    }  # fmt: skip
    assert services["s3"]["VpcEndpointType"] == "Gateway"
    assert all(body["PrivateDnsEnabled"] for name, body in services.items() if name != "s3")


@pytest.mark.parametrize(
    ("spec", "facts", "message"),
    [
        (make_spec(master="here"), make_facts(), "only where they know its address"),
        (make_spec(master="here", network="make"), make_facts(MADE), "does not get into"),
        (
            make_spec(master="here", tunnel=True),
            make_facts(broker_port=5671),
            "only where they know its address",
        ),
    ],
)
def test_a_master_at_home_must_get_in(spec: Any, facts: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_for(spec, facts)


def test_charges_are_of_the_resources() -> None:
    plan = plan_for(make_spec(network="make", capacity="mixed:25"), make_facts(MADE))

    amounts: dict[tuple[str, str], float] = {}
    for charge in plan.charges:
        key = (charge.item, charge.role)
        amounts[key] = amounts.get(key, 0.0) + charge.amount
    assert amounts["fargate-vcpu-hour", "worker"] == 0.25
    assert amounts["fargate-spot-vcpu-hour", "worker"] == 0.75
    assert amounts["secret-month", ""] == 3
    assert amounts["endpoint-hour", ""] == 12  # six services in two zones
    assert amounts["dns-zone-month", ""] == 1


def test_the_plan_is_json_without_secrets() -> None:
    for plan in every_plan():
        shown = json.loads(json.dumps(plan.to_json()))
        assert len(shown["resources"]) == len(plan.resources)
        assert {"account": ACCOUNT, "region": "eu-central-1"}.items() <= shown.items()
        assert shown["policy"]["Statement"]
        assert all(one["actions"] for one in shown["resources"])
        assert "SecretString" not in json.dumps(shown)
    role = next(one for one in shown["resources"] if one["kind"] == "role")
    assert role["request"]["AssumeRolePolicyDocument"]["Version"] == "2012-10-17"


def test_every_kind_that_a_plan_has_is_known_and_goes() -> None:
    planned = {one.kind for plan in every_plan() for one in plan.resources}
    gone = {kind.name for kind in REMOVAL}

    assert planned <= set(KINDS)
    # Those go with another, or stay.
    rest = {"schedule", "bucket", "security-group-ingress", "security-group-egress"}
    assert planned - gone == rest


def test_requests_are_right_by_the_models_of_boto3() -> None:
    import boto3
    from botocore.validate import ParamValidator

    session = boto3.Session(region_name="eu-central-1")
    for plan in every_plan():
        for one in plan.resources:
            kind = KINDS[one.kind]
            client = session.client(kind.service)
            for operation, body in ((kind.operation, one.body), *one.more):
                name = client.meta.method_to_api_mapping[operation]
                shape = client.meta.service_model.operation_model(name).input_shape
                # boto3 adds tokens of its own.
                tokens = {key: "x" * 36 for key, part in shape.members.items()
                          if part.metadata.get("idempotencyToken")}  # fmt: skip
                report = ParamValidator().validate({**tokens, **body}, shape)
                assert report.generate_report() == "", one.kind
