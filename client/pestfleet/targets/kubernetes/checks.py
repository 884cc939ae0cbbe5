"""What would go wrong with a launch, found before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pestfleet.targets.kubernetes.access import Access, Refused
from pestfleet.targets.kubernetes.causes import read_refusal
from pestfleet.targets.kubernetes.diagnosis import find_autoscaler
from pestfleet.targets.kubernetes.naming import Object, read_role
from pestfleet.targets.kubernetes.permissions import (
    Permission,
    check_permissions,
    list_permissions,
    write_role,
)
from pestfleet.targets.kubernetes.placement import find_place
from pestfleet.targets.kubernetes.quantities import (
    Amounts,
    format_amount,
    join_words,
    parse_amounts,
    sum_usage,
)
from pestfleet.targets.troubles import fill
from pestfleet_worker.errors import ConfigurationError, TargetError

__all__ = ["Permission", "check_launch", "list_permissions", "write_role"]

_STORAGE = "/apis/storage.k8s.io/v1/storageclasses"
_DEFAULT = "storageclass.kubernetes.io/is-default-class"

# The image -> why it cannot be pulled, "" when it can.
FindProblem = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Template:
    """The pods that an object makes, and how many."""

    role: str
    count: int
    body: Object  # metadata and spec

    @property
    def spec(self) -> Object:
        spec: Object = self.body["spec"]
        return spec


def check_launch(
    access: Access,
    objects: Sequence[Object],
    *,
    least: int = 1,
    find_problem: FindProblem | None = None,
) -> list[str]:
    """Can these objects of the chart work in the cluster? Returns warnings.

    `least`: workers without which the session is not worth it. Raises `TargetError` for what
    cannot work as the cluster is, `ConfigurationError` for objects that no cluster takes, and
    `Unreachable`. Nothing is made.
    """
    _check_namespace(access)
    check_permissions(access, objects)
    templates = list_templates(objects)
    _check_admission(access, objects, templates)
    warnings = _check_quotas(access, objects, templates, least)
    warnings += _check_storage(access, objects)
    warnings += _check_nodes(access, templates)
    if find_problem is not None:
        for image in sorted({c["image"] for t in templates for c in _list_containers(t.spec)}):
            if problem := find_problem(image):
                raise TargetError(
                    f"the image {image} cannot be pulled: {problem}",
                    remedy="Push it (pestfleet build CASE --push), or check its name.",
                )
    return warnings


def list_templates(objects: Sequence[Object]) -> list[Template]:
    """The pods that objects make, the workers last."""
    found = []
    for one in objects:
        spec = one.get("spec") or {}
        if one["kind"] == "DaemonSet" or "template" not in spec:
            continue
        count = int(spec.get("parallelism", spec.get("replicas", 1)))
        found.append(Template(read_role(one), count, spec["template"]))
    return sorted(found, key=lambda template: template.role == "worker")


def _list_containers(spec: Object) -> list[Object]:
    return [*(spec.get("initContainers") or ()), *spec["containers"]]


# -- the namespace -----------------------------------------------------------------------------


def _check_namespace(access: Access) -> None:
    name = access.namespace
    missing = TargetError(
        f"the cluster at {access.server} has no namespace {name}",
        remedy=f"Make it (kubectl create namespace {name}), or choose another with --namespace.",
    )
    try:
        found = access.get(f"/api/v1/namespaces/{name}")
    except Refused as error:
        if error.status == 404:
            raise missing from error
        if error.status != 403:
            raise
        _try_namespace(access, missing)
        return
    if (found.get("status") or {}).get("phase") == "Terminating":
        raise TargetError(
            f"the namespace {name} is being removed", remedy="Choose another with --namespace."
        )


def _try_namespace(access: Access, missing: TargetError) -> None:
    """For accounts that may not look at namespaces: would something be made there?"""
    body: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "pestfleet-check"},
    }
    try:
        access.post(access.find_path("v1", "configmaps"), body, dryRun="All")
    except Refused as error:
        if error.status == 404:
            raise missing from error
        if error.status not in (403, 409):  # what we may not do is told with all else
            raise


# -- admission ---------------------------------------------------------------------------------


def _check_admission(
    access: Access, objects: Sequence[Object], templates: Sequence[Template]
) -> None:
    """Would the API server take the pods? It is asked, without making them.

    That finds what the namespace forbids: its pod security level, limits per pod, a full quota,
    a service account that is missing. Accounts that may make Jobs, but no pods, learn nothing here.
    """
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for template in templates:
        spec = dict(template.spec)
        for key, kind in (
            ("priorityClassName", "PriorityClass"),
            ("serviceAccountName", "ServiceAccount"),
        ):
            if (kind, spec.get(key)) in names:  # it is made with the pods
                del spec[key]
        metadata = {**template.body.get("metadata", {}), "generateName": "pestfleet-check-"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        try:
            access.post(access.find_path("v1", "pods"), body, dryRun="All")
        except Refused as error:
            if "cannot create resource" in error.message or "dry run" in error.message:
                return
            if error.status in (400, 422):
                raise ConfigurationError(
                    f"the cluster takes no such pods of role {template.role}: {error.message}",
                    remedy="Look at --values and --set; --dry-run shows the objects.",
                ) from error
            if error.status not in (403, 404):
                raise
            cause = read_refusal(error.message, template.role)
            what = "workers" if template.role == "worker" else f"the {template.role}"
            why = fill(cause.why, template.role == "worker")
            raise TargetError(f"{what} cannot be made: {why}", remedy=cause.remedy) from error


# -- quotas ------------------------------------------------------------------------------------


def _check_quotas(
    access: Access, objects: Sequence[Object], templates: Sequence[Template], least: int
) -> list[str]:
    """How many workers fit into what the quotas of the namespace leave?"""
    workers = next((t for t in templates if t.role == "worker"), None)
    if workers is None:
        return []
    others: Amounts = {}
    for template in templates:
        if template is not workers:
            _add(others, sum_usage(template.spec), template.count)
    for claim in _list_claims(objects):
        requested = parse_amounts(claim["spec"]["resources"].get("requests"))
        storage = requested.get("storage", Fraction(0))
        _add(others, {"requests.storage": storage, "persistentvolumeclaims": Fraction(1)}, 1)
    each = sum_usage(workers.spec)
    warnings = []
    for quota in access.find_all(access.find_path("v1", "resourcequotas")):
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue  # it counts some pods only
        name = quota["metadata"]["name"]
        fit, why = _count_fit(quota, others, each)
        if fit < 0:
            raise TargetError(
                f"the quota {name} of namespace {access.namespace} leaves no room for "
                f"{_name_others(templates)}: {why}",
                remedy="End other sessions there, or have it raised.",
            )
        if fit < min(least, workers.count):
            raise TargetError(
                f"the quota {name} of namespace {access.namespace} leaves room for {fit} of "
                f"{workers.count} workers: {why}",
                remedy="Ask for less (--workers, --cpus, --memory), or have it raised.",
            )
        if fit < workers.count:
            warnings.append(
                f"the quota {name} leaves room for {fit} of {workers.count} workers: {why}"
            )
    return warnings


def _name_others(templates: Sequence[Template]) -> str:
    return join_words(f"the {t.role}" for t in templates if t.role != "worker") or "the volumes"


def _count_fit(quota: Object, others: Amounts, each: Amounts) -> tuple[int, str]:
    """How many workers fit besides the other pods, -1 if not even those; and what is short."""
    status = quota.get("status") or {}
    hard, used = parse_amounts(status.get("hard")), parse_amounts(status.get("used"))
    zero = Fraction(0)
    fits: list[tuple[int, str]] = []
    for name, limit in hard.items():
        free = limit - used.get(name, zero)
        why = (
            f"of {format_amount(name, limit)} ({name}) {format_amount(name, used.get(name, zero))} "
            "is in use"
        )
        left = free - others.get(name, zero)
        if left < 0 and others.get(name, zero) > 0:
            fits.append((-1, f"{why}, and they ask for {format_amount(name, others[name])}"))
        elif each.get(name, zero) > 0:
            asked = f"and each asks for {format_amount(name, each[name])}"
            fits.append((max(0, int(left / each[name])), f"{why}, {asked}"))
    return min(fits, default=(10**9, ""))


def _add(total: Amounts, part: Amounts, times: int) -> None:
    for name, amount in part.items():
        total[name] = total.get(name, Fraction(0)) + amount * times


# -- nodes -------------------------------------------------------------------------------------


def _check_nodes(access: Access, templates: Sequence[Template]) -> list[str]:
    nodes = _try_list(access, "/api/v1/nodes")
    if nodes is None:
        return []
    warnings = []
    for template in templates:
        one = "a worker" if template.role == "worker" else f"the {template.role}"
        place = find_place(template.spec, nodes)
        why = fill(place.why, False)
        if place.kind == "away":
            warnings.append(f"no node takes {one} for now: {why}")
        elif place.kind != "fits":
            if find_autoscaler(access) is False:
                raise TargetError(
                    f"no node of the cluster can take {one}: {why}",
                    remedy="Ask for less (--cpus, --memory), or choose other nodes: see "
                    "nodeSelector and tolerations in --values.",
                )
            warnings.append(f"no node that is there now takes {one}: {why}; one must be added")
        elif place.room < template.count:
            warnings.append(
                f"the nodes that are there have room for {place.room} of {template.count} workers, "
                "if nothing else runs there"
            )
    return warnings


# -- storage -----------------------------------------------------------------------------------


def _list_claims(objects: Sequence[Object]) -> list[Object]:
    claims = [one for one in objects if one["kind"] == "PersistentVolumeClaim"]
    for one in objects:
        claims += (one.get("spec") or {}).get("volumeClaimTemplates") or ()
    return claims


def _check_storage(access: Access, objects: Sequence[Object]) -> list[str]:
    """Has the cluster the storage classes that volumes want, or a default one?"""
    claims = _list_claims(objects)
    classes = _try_list(access, _STORAGE) if claims else None
    if classes is None:
        return []
    names = {one["metadata"]["name"] for one in classes}
    default = any(
        (one["metadata"].get("annotations") or {}).get(_DEFAULT) == "true" for one in classes
    )
    warnings = []
    for claim in claims:
        wanted = claim["spec"].get("storageClassName")
        if wanted in names or (wanted is None and default) or wanted == "":
            continue
        component = read_role(claim) or "master"
        remedy = (
            f"Name one: --set {component}.volume.storageClass=NAME. There are: "
            f"{', '.join(sorted(names)) or 'none'}."
        )
        what = f"the storage class {wanted}" if wanted else "a default storage class"
        problem = f"the cluster has not {what}, which the volume {claim['metadata']['name']} wants"
        if _is_there(access, claim):
            continue
        if wanted is None and _has_volumes(access) is not False:
            warnings.append(f"{problem}: only a volume that is there already can do. {remedy}")
            continue
        raise TargetError(problem, remedy=remedy)
    return warnings


def _is_there(access: Access, claim: Object) -> bool:
    """Is it the claim of a session that resumes?"""
    path = access.find_path("v1", "persistentvolumeclaims", claim["metadata"]["name"])
    try:
        return (access.get(path).get("status") or {}).get("phase") == "Bound"
    except Refused as error:
        if error.status in (403, 404):
            return False
        raise


def _has_volumes(access: Access) -> bool | None:
    """Are there volumes that were made by hand, and are free? None where that cannot be seen."""
    volumes = _try_list(access, "/api/v1/persistentvolumes")
    if volumes is None:
        return None
    return any(
        (volume.get("status") or {}).get("phase") == "Available"
        and not volume["spec"].get("storageClassName")
        for volume in volumes
    )


def _try_list(access: Access, path: str, **query: Any) -> list[Object] | None:
    """A list; None where we may not look at it."""
    try:
        return access.find_all(path, **query)
    except Refused as error:
        if error.status == 403:
            return None
        raise
