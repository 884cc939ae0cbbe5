"""A stand-in of ECS's scheduler: it keeps services at their desired count of tasks.

Tasks only pretend to run, so 10,000 of them are no trouble; or their containers run with the local
Docker engine (ecs_containers.py), when `start_machine` is given.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import ecs_capacity
import ecs_network
from ecs_services import FARGATE, drain
from ecs_state import Service, Task, make_task
from moto_server import Amazon

ROUND = 0.05  # seconds between two looks at all services
NO_CAPACITY = (  # of Fargate
    "was unable to place a task. Reason: Capacity is unavailable at this time. Please try again "
    "later or in a different availability zone. For more information, see the Troubleshooting "
    "section of the Amazon ECS Developer Guide."
)
NO_MACHINE = (
    "was unable to place a task because no container instance met all of its requirements. "
    "Reason: No Container Instances were found in your cluster. For more information, see the "
    "Troubleshooting section of the Amazon ECS Developer Guide."
)
SPOT_REASON = "Your Spot Task was interrupted."


class Machine(Protocol):
    """Where a task's containers run. It says itself when the task is RUNNING."""

    address: str  # of its network interface; "" until it has one

    def stop(self) -> None:
        """Begin to end the containers, by SIGTERM. It returns at once."""

    def has_ended(self) -> bool: ...


class EcsScheduler:
    """It works between `start` and `stop`, in a thread of its own.

    `limits`: capacity provider (or launch type EC2, FARGATE) -> most tasks that it has room for;
    none: enough. `reasons`: what the service's event says then, if not the usual. `pace`: seconds
    that a task takes from one status to the next. `interfaces`: do tasks get network interfaces
    in EC2?
    """

    def __init__(
        self, amazon: Amazon, *, start_machine: Callable[[Task], Machine] | None = None
    ) -> None:
        self.amazon = amazon
        self.limits: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self.pace = 0.0
        self.interfaces = True
        self.failing: dict[str, str] = {}  # service -> why its tasks do not come to RUNNING
        self._start_machine = start_machine
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="ecs-scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop to look after services; tasks stay as they are."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        pause = ROUND
        while not self._ending.wait(pause):
            begun = time.monotonic()
            try:
                self.look()
            except Exception as error:  # a test's end tells it
                self.amazon.defects.append(f"ECS's scheduler: {error!r}")
                raise
            pause = max(ROUND, 3 * (time.monotonic() - begun))  # with 10,000 tasks it takes a while

    # ---- what tests do

    def list_tasks(self, service: str = "", *, status: str = "RUNNING") -> list[Task]:
        """Tasks of a service (or of all) in a status."""
        with self.amazon.lock:
            return [
                task
                for tasks in self.amazon.state.ecs.tasks.values()
                for task in tasks.values()
                if task.last_status == status and service in ("", task.service)
            ]

    def wait_for(self, service: str, count: int, *, seconds: float = 300) -> list[Task]:
        """The running tasks of a service, when they are so many, and none else is on its way."""
        deadline = time.monotonic() + seconds
        while True:
            with self.amazon.lock:
                running = self.list_tasks(service)
                all_tasks = [
                    task
                    for tasks in self.amazon.state.ecs.tasks.values()
                    for task in tasks.values()
                    if task.service == service and task.last_status != "STOPPED"
                ]
                if len(running) == len(all_tasks) == count:
                    return running
            assert time.monotonic() < deadline, self.describe(service)
            time.sleep(ROUND)

    def wait_until(self, true: Callable[[], bool], *, seconds: float = 300) -> None:
        """Until something is so."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(ROUND)

    def describe(self, service: str) -> str:
        """A service's events and tasks, for who waits in vain."""
        with self.amazon.lock:
            state = self.amazon.state.ecs
            events = [
                event["message"]
                for one in state.services.values()
                if one.name == service
                for event in one.answer["events"][:5]
            ]
            tasks = [
                (task.id, task.last_status, task.answer.get("stoppedReason"),
                 [(one["name"], one["lastStatus"], one.get("exitCode"), one.get("reason"))
                  for one in task.answer["containers"]])
                for tasks in state.tasks.values()
                for task in tasks.values()
                if task.service == service
            ]  # fmt: skip
        return f"{service}: {events}\n" + "\n".join(map(str, tasks[-5:]))

    def stop_task(self, arn: str, *, spot: bool = False) -> None:
        """Stop a task: as an operator does, or as Spot does, which takes protected ones, too."""
        with self.amazon.lock:
            task = self.amazon.state.ecs.find(arn)
            assert isinstance(task, Task), arn
            if spot:
                assert task.provider == "FARGATE_SPOT", "only tasks on Spot are interrupted"
                task.want_stop("SpotInterruption", SPOT_REASON)
            else:
                task.want_stop("UserInitiated", "Task stopped by user")

    # ---- one look at all

    def look(self) -> None:
        """Do what is due. The thread does it again and again; with none, a test may."""
        with self.amazon.lock:
            state = self.amazon.state.ecs
            mine: dict[tuple[str, str, str], list[Task]] = defaultdict(list)
            for (region, cluster), tasks in state.tasks.items():
                for task in tasks.values():
                    if task.last_status != "STOPPED":
                        self._go_on(task)
                        mine[region, cluster, task.service].append(task)
            for key, service in list(state.services.items()):
                if service.status == "ACTIVE":
                    self._keep(service, [one for one in mine[key] if one.last_status != "STOPPED"])
                elif service.status == "DRAINING":
                    for task in mine[key]:
                        self._say_stopped(service, [task] if task.wanted else [])
                    drain(self.amazon, service)
            ecs_capacity.follow_demand(self.amazon)
            self.amazon.do_due()

    def _keep(self, service: Service, tasks: list[Task]) -> None:
        wanted = [task for task in tasks if task.wanted]
        current = [task for task in wanted if task.deployment == service.deployment["id"]]
        older = [task for task in wanted if task.deployment != service.deployment["id"]]
        settings = service.answer["deploymentConfiguration"]
        desired = service.desired
        most = max(1, math.floor(desired * settings["maximumPercent"] / 100)) if desired else 0
        least = math.ceil(desired * settings["minimumHealthyPercent"] / 100)
        running = sum(task.last_status == "RUNNING" for task in wanted)
        may_stop = max(0, running - least)
        replaced = [task for task in older if not task.protected]
        unready = [task for task in replaced if task.last_status != "RUNNING"]
        ready = [task for task in replaced if task.last_status == "RUNNING"]
        self._say_stopped(service, [*unready, *ready[:may_stop]])
        surplus = len(current) + sum(task.wanted for task in older) - desired
        if surplus > 0 and len(current) > desired:
            self._scale_in(service, current, len(current) - desired)
        room = min(desired - len(current), most - sum(task.wanted for task in wanted))
        if room > 0 and service.deployment["rolloutState"] != "FAILED":
            self._scale_out(service, current, room)
        elif len(current) == desired == sum(one.last_status == "RUNNING" for one in current):
            self._rest(service, tasks)

    def _rest(self, service: Service, tasks: list[Task]) -> None:
        """All is as it shall be."""
        deployment = service.deployment
        if len(tasks) > service.desired or service.steady:
            return
        service.steady = True
        service.failed = 0
        del service.answer["deployments"][1:]
        if deployment["rolloutState"] == "IN_PROGRESS":
            name = deployment["id"]
            deployment.update(
                rolloutState="COMPLETED", rolloutStateReason=f"ECS deployment {name} completed."
            )
            service.say(f"(deployment {name}) deployment completed.")
        service.say("has reached a steady state.")

    def _scale_in(self, service: Service, tasks: list[Task], count: int) -> None:
        free = [task for task in tasks if not task.protected]
        # Those that do not run yet go first, then the newest.
        free.sort(key=lambda task: (task.last_status == "RUNNING", -task.answer["createdAt"]))
        self._say_stopped(service, free[:count])
        if len(free) < count:
            service.say(
                f"was unable to scale in due to {count - len(free)} protected tasks. For more "
                "information, see the Troubleshooting section of the Amazon ECS Developer Guide."
            )

    def _say_stopped(self, service: Service, tasks: list[Task]) -> None:
        if not tasks:
            return
        name = tasks[0].deployment
        for task in tasks:
            reason = f"Scaling activity initiated by (deployment {name})"
            task.want_stop("ServiceSchedulerInitiated", reason)
        names = " ".join(f"(task {task.id})" for task in tasks)
        service.say(f"has stopped {len(tasks)} running tasks: {names}.")

    def _scale_out(self, service: Service, current: list[Task], count: int) -> None:
        if time.monotonic() < service.restarted:
            return
        made: list[Task] = []
        for _ in range(count):
            provider = _choose_provider(service, [*current, *made])
            place = provider or service.answer.get("launchType", "EC2")
            if not self._has_room(place):
                usual = NO_CAPACITY if place in FARGATE else NO_MACHINE
                service.say(self.reasons.get(place, usual))
                service.restarted = time.monotonic() + 0.5
                break
            made.append(self._make(service, provider))
        if made:
            service.steady = False
            names = " ".join(f"(task {task.id})" for task in made)
            service.say(f"has started {len(made)} tasks: {names}.")

    def _has_room(self, provider: str) -> bool:
        if provider not in self.limits:
            return True
        used = sum(
            task.last_status != "STOPPED"
            and (task.provider or task.answer["launchType"]) == provider
            for tasks in self.amazon.state.ecs.tasks.values()
            for task in tasks.values()
        )
        return used < self.limits[provider]

    def _make(self, service: Service, provider: str) -> Task:
        ecs = self.amazon.backend("ecs", region=service.region)
        family, _, revision = service.answer["taskDefinition"].rsplit("/", 1)[-1].partition(":")
        definition = ecs.task_definitions[family][int(revision)]
        fargate = provider in FARGATE or service.answer.get("launchType") == "FARGATE"
        subnet = ecs_network.choose_subnet(self.amazon, service)
        tags = []
        if service.answer["propagateTags"] == "SERVICE":
            tags = list(service.tags)
        elif service.answer["propagateTags"] == "TASK_DEFINITION":
            tags = list(definition.tags or [])
        task = make_task(
            service=service,
            region=service.region,
            cluster=service.cluster,
            cluster_arn=service.answer["clusterArn"],
            definition=definition,
            provider=provider,
            launch_type="FARGATE" if fargate else "EC2",
            zone=subnet.availability_zone if subnet else f"{service.region}a",
            tags=tags,
        )
        if subnet and self.interfaces:
            task.answer["attachments"] = [ecs_network.attach(self.amazon, service, task, subnet)]
        self.amazon.state.ecs.add(task)
        return task

    # ---- one task

    def _go_on(self, task: Task) -> None:
        if not task.wanted:
            self._end(task)
            return
        if time.monotonic() - task.since < self.pace:
            return
        if task.last_status == "PROVISIONING":
            if task.answer["launchType"] == "EC2" and not ecs_capacity.place(self.amazon, task):
                return
            if task.service in self.failing:
                task.want_stop("TaskFailedToStart", self.failing[task.service])
                return
            task.enter("PENDING", pullStartedAt=time.time())
            if self._start_machine is not None:
                task.machine = self._start_machine(task)
        elif task.last_status == "PENDING" and task.machine is None:
            task.enter("RUNNING", startedAt=time.time(), connectivityAt=time.time())
        if task.last_status == "RUNNING" and not task.registered:
            ecs_network.register(self.amazon, task)

    def _end(self, task: Task) -> None:
        if task.last_status not in ("STOPPING", "DEPROVISIONING"):
            ecs_network.deregister(self.amazon, task)
            if task.machine is not None:
                task.machine.stop()
            task.enter("STOPPING")
            return
        if task.machine is not None and not task.machine.has_ended():
            return
        if time.monotonic() - task.since < self.pace:
            return
        started = "startedAt" in task.answer
        task.enter("STOPPED", stoppedAt=time.time(), executionStoppedAt=time.time())
        ecs_capacity.leave(self.amazon, task)
        if task.interface:
            ec2 = self.amazon.backend("ec2", region=task.region)
            if task.interface in ec2.enis:
                self.amazon.do_later(ec2.enis[task.interface].delete)
        self._count_failure(task, started=started)

    def _count_failure(self, task: Task, *, started: bool) -> None:
        """Tasks that fail again and again are started ever slower, or no more (circuit breaker)."""
        service = self.amazon.state.ecs.services.get((task.region, task.cluster, task.service))
        code = task.answer.get("stopCode")
        if service is None or code in ("ServiceSchedulerInitiated", "UserInitiated",
                                       "SpotInterruption"):  # fmt: skip
            return
        service.steady = False
        if started and code == "EssentialContainerExited":
            zero = [one.get("exitCode") == 0 for one in task.answer["containers"]]
            if all(zero):
                return
        service.failed += 1
        service.restarted = time.monotonic() + min(0.1 * 2**service.failed, 5.0)
        deployment = service.deployment
        if task.deployment != deployment["id"]:
            return
        deployment["failedTasks"] += 1
        breaker = service.answer["deploymentConfiguration"].get("deploymentCircuitBreaker") or {}
        most = min(200, max(3, math.ceil(service.desired / 2)))
        if (
            breaker.get("enable")
            and deployment["rolloutState"] == "IN_PROGRESS"
            and deployment["failedTasks"] >= most
        ):
            said = "ECS deployment circuit breaker: tasks failed to start."
            deployment.update(rolloutState="FAILED", rolloutStateReason=said)
            name = deployment["id"]
            service.say(f"(deployment {name}) deployment failed: tasks failed to start.")
        elif service.failed > 2:
            service.say("is unable to consistently start tasks successfully.")


def _choose_provider(service: Service, tasks: list[Task]) -> str:
    """By the strategy's base first, then by weights; "" where the launch type says it all."""
    strategy = service.answer.get("capacityProviderStrategy") or ()
    if not strategy:
        return ""
    used = Counter(task.provider for task in tasks)
    for one in strategy:
        if used[one["capacityProvider"]] < one.get("base", 0):
            return str(one["capacityProvider"])
    weighted = [one for one in strategy if one.get("weight", 0) > 0]
    best = min(
        weighted,
        key=lambda one: (used[one["capacityProvider"]] - one.get("base", 0) + 1) / one["weight"],
    )
    return str(best["capacityProvider"])


@contextmanager
def run_scheduler(
    amazon: Amazon, *, start_machine: Callable[[Task], Machine] | None = None
) -> Iterator[EcsScheduler]:
    """ECS's scheduler while the block runs."""
    made = EcsScheduler(amazon, start_machine=start_machine)
    made.start()
    try:
        yield made
    finally:
        made.stop()
