"""What a launch makes in an account, in its order, what it may cost, and which rights it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pestfleet.costs.charges import Charge
from pestfleet.folder import SessionSpec
from pestfleet.targets.ecs.machines import count_workers, plan_machines
from pestfleet.targets.ecs.network import plan_endpoints, plan_own_network
from pestfleet.targets.ecs.parts import (
    plan_bucket,
    plan_cluster,
    plan_lease,
    plan_logs,
    plan_names,
    plan_repository,
    plan_roles,
    plan_secrets,
    plan_services,
)
from pestfleet.targets.ecs.permissions import list_actions, make_launch_policy
from pestfleet.targets.ecs.planned import (
    AmazonPlan,
    Facts,
    Ground,
    Machine,
    Network,
    Planned,
    make_session_tags,
)
from pestfleet.targets.ecs.rules import plan_groups
from pestfleet.targets.ecs.tasks import Images, TaskPlan, list_charges, make_tasks
from pestfleet_worker.errors import ConfigurationError

__all__ = ["AmazonPlan", "Facts", "Machine", "Network", "Planned", "make_plan", "name_images"]


def make_plan(spec: SessionSpec, images: Images, facts: Facts) -> AmazonPlan:
    """Everything that a launch makes. It asks nobody.

    `images`: see `name_images`. Raises `ConfigurationError` for what cannot work.
    """
    _check(spec, facts)
    ground = Ground(spec, images, facts, make_session_tags(spec, facts))
    own = facts.network.made
    machines = facts.machine is not None
    planned = [
        *plan_lease(ground),
        *plan_logs(ground),
        *plan_roles(ground),
        *plan_repository(ground),
        *plan_bucket(ground),
        *(plan_own_network(ground) if own else []),
        *plan_groups(ground),
        *plan_secrets(ground),
        *(plan_endpoints(ground) if own else []),
        *plan_names(ground),
        *plan_cluster(ground),
        *(plan_machines(ground) if machines else []),
        *_plan_tasks(ground),
        *plan_services(ground),
    ]
    planned = _add_charges(ground, planned)
    plan = AmazonPlan(
        spec=spec,
        region=facts.region,
        resources=[replace(one, actions=list_actions(one.kind)) for one in planned],
        charges=tuple(charge for one in planned for charge in one.charges),
        account=facts.account,
        partition=facts.partition,
        bucket=ground.bucket,
        cluster=ground.cluster,
        network=facts.network,
        launched=facts.launched,
    )
    return replace(plan, policy=make_launch_policy(plan))


def name_images(spec: SessionSpec, facts: Facts, roles: Sequence[str]) -> Images:
    """The references of these images in the session's own repository of ECR."""
    from pestfleet.targets.ecs.naming import Names

    host = f"{facts.account}.dkr.ecr.{facts.region}.{facts.suffix}"
    place = f"{host}/{Names(spec.session).repository}"
    return Images(**{role: f"{place}:{role}" for role in roles})


def _check(spec: SessionSpec, facts: Facts) -> None:
    amazon, here = spec.place.amazon, spec.place.master == "here"
    if here and facts.network.made:
        raise ConfigurationError(
            "a master on this machine does not get into a network of the session's own",
            remedy='Say --master there, or leave amazon.network = "make" out.',
        )
    comes_in = spec.place.tunnel or not facts.broker_port
    if here and comes_in and not amazon.allow_from:
        raise ConfigurationError(
            "security groups let a master on this machine in only where they know its address",
            remedy="Set amazon.allow_from to the address that this machine has in the internet, "
            "such as 203.0.113.7/32, and amazon.public = true; or say --master there.",
        )


def _task_plan(ground: Ground) -> TaskPlan:
    facts, machine = ground.facts, ground.facts.machine
    return TaskPlan(
        spec=ground.spec,
        images=ground.images,
        account=facts.account,
        region=facts.region,
        bucket=ground.bucket,
        partition=facts.partition,
        launch=facts.launch,
        case_bytes=facts.case_bytes,
        architecture="ARM64" if machine and machine.architecture == "arm64" else "X86_64",
        tags={"owner": facts.owner, "folder": facts.folder},
    )


def _plan_tasks(ground: Ground) -> Iterator[Planned]:
    for role, body in make_tasks(_task_plan(ground)).items():
        # All resources have the same tags.
        tags = [{"key": key, "value": value} for key, value in ground.tag(role).items()]
        yield Planned("task-definition", str(body["family"]), role, {**body, "tags": tags})


def _add_charges(ground: Ground, planned: list[Planned]) -> list[Planned]:
    """What tasks cost, on the services that run them."""
    machine = ground.facts.machine
    many = count_workers(ground, machine) if machine else 1
    tasks = list_charges(_task_plan(ground), per_machine=many)
    logs = Charge("log-gb", 0.1, "", "logs, about 0.1 GB")
    added: dict[tuple[str, str], tuple[Charge, ...]] = {
        ("service", role): charges for role, charges in tasks.items()
    }
    added["log-group", ""] = (logs,)
    return [
        replace(one, charges=one.charges + added.get((one.kind, one.role), ())) for one in planned
    ]
