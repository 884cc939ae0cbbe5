"""What the messages of a cluster mean: of image pulls, of refused pods, of exit codes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from pestfleet.targets.kubernetes.quantities import (
    Amounts,
    format_amount,
    format_bytes,
    join_words,
    parse_amounts,
)
from pestfleet.targets.troubles import Cause, Form, shorten


def find_component(role: str) -> str:
    """The name of a role in the chart's values."""
    return "workers" if role == "worker" else role


# -- images ------------------------------------------------------------------------------------

_AGAIN = "The nodes try again by themselves. If it stays, check the name and the nodes' network."
# Pattern in what a node says -> what it is, what to do, is it for good. The first one counts.
_PULLS = (
    (
        r"invalid reference format|couldn't parse image name",
        "{image} is not the name of an image",
        "Names are of small letters: REGISTRY/NAME:TAG.",
        True,
    ),
    (
        r"is not present with pull policy of never",
        "the image {image} is not on the node, and its pull policy is Never",
        "Say --set image.pullPolicy=IfNotPresent.",
        True,
    ),
    (
        r"toomanyrequests|rate limit|\b429\b",
        "the registry gives out no more for now (image {image})",
        "The nodes try again by themselves; a login may be allowed more: image.pullSecrets.",
        False,
    ),
    (
        r"unauthorized|authentication required|authorization failed|denied|forbidden"
        r"|insufficient_scope|no basic auth|\b40[13]\b",
        "the registry does not give the image {image} to the nodes: it wants a login, or there is "
        "no such image",
        "Make a pull secret in the namespace (kubectl create secret docker-registry), and name "
        "it: --set 'image.pullSecrets={{NAME}}'",
        True,
    ),
    (
        r"no match for platform|no matching manifest|does not match the specified platform",
        "the image {image} is not for the processor of the node",
        "Build it for that platform, or choose other nodes: --set workers.nodeSelector...",
        True,
    ),
    (
        r"server gave http response to https client",
        "the registry of {image} speaks http, and the nodes want https",
        "Have the registry use TLS, or allow it in the nodes' container runtime.",
        True,
    ),
    (
        r"x509|certificate",
        "the nodes do not trust the certificate of the registry of {image}",
        "Give the nodes' container runtime the registry's CA.",
        True,
    ),
    (
        r"no space left",
        "the image {image} does not fit on the node's disk",
        "Make the image smaller, or have nodes with larger disks.",
        False,
    ),
    (
        r"no such host|: lookup |server misbehaving",
        "the nodes find no address of the registry of {image}",
        _AGAIN,
        False,
    ),
    (
        r"connection refused|timeout|deadline exceeded|unreachable|connection reset|no route"
        r"|\beof\b|dial tcp",
        "the nodes do not reach the registry of {image}",
        _AGAIN,
        False,
    ),
    (
        r"not ?found|manifest unknown|name unknown|does not exist",
        "the registry has no image {image}",
        "Push it (pestfleet build CASE --push), or check its name.",
        True,
    ),
)


def read_pull(message: str, image: str) -> Cause:
    """Why a node does not get an image, by what it says."""
    said = message.replace(image, "")  # which may have a word or number of the patterns in it
    for pattern, why, remedy, hopeless in _PULLS:
        if re.search(pattern, said, re.IGNORECASE):
            return Cause(
                "image", "wait", why.format(image=image), remedy.format(image=image), hopeless
            )
    return Cause("image", "wait", f"the image {image} cannot be pulled{_add_end(message)}", _AGAIN)


def _add_end(message: str) -> str:
    """The last part of a chain of errors, which says most."""
    if message.startswith("Back-off pulling") and ": " not in message:
        return ""
    return f": {shorten(message.rpartition(': ')[2])}"


# -- what the API server refuses ---------------------------------------------------------------

_QUOTA = re.compile(
    r"exceeded quota: (?P<name>\S+), requested: (?P<requested>\S+), "
    r"used: (?P<used>\S+), limited: (?P<limited>\S+)"
)
_NO_LIMIT = re.compile(r"failed quota: (?P<name>\S+): must specify (?P<what>\S+)")
_SECURITY = re.compile(r'violates PodSecurity "(?P<level>[^":]+)[^"]*": (?P<what>.*)', re.DOTALL)
_RANGE = re.compile(
    r"(?P<end>maximum|minimum) (?P<what>\S+) usage per (?P<of>Container|Pod) is (?P<bound>[^,]+)"
    r"(?:, but (?P<kind>limit|request) is (?P<given>[^,\s]+))?"
)
_ACCOUNT = re.compile(r'serviceaccount "(?P<name>[^"]+)" not found')
_PRIORITY = re.compile(r"no PriorityClass with name (?P<name>\S+) was found")
_WEBHOOK = re.compile(
    r'admission webhook "(?P<name>[^"]+)" denied the request: ?(?P<what>.*)', re.S
)


def read_refusal(message: str, role: str, own: Amounts | None = None) -> Cause:
    """Why the API server lets a pod not be made. `own`: what the session itself uses already.

    The message is that of a Job's event FailedCreate, or of a refused request.
    """
    message = message.removeprefix("(combined from similar events): ")
    if match := _QUOTA.search(message):
        return _read_quota(match, own or {})
    component = find_component(role)
    if match := _NO_LIMIT.search(message):
        why = f"the quota {match['name']} wants {{them}} to say {match['what']}"
        remedy = f"Set all of --set {component}.resources.limits and requests."
        return Cause("quota", "absent", why, remedy, True)
    if match := _SECURITY.search(message):
        return Cause(
            "security",
            "absent",
            f"the namespace allows only pods of security level {match['level']}: "
            f"{shorten(match['what'])}",
            f"Leave out of --values what the level forbids (such as {component}.volumes of the "
            "node), or use another namespace.",
            True,
        )
    if match := _RANGE.search(message):
        given = f", and {{each}} has {match['given']}" if match["given"] else ""
        return Cause(
            "range",
            "absent",
            f"the namespace allows a {match['of'].lower()} {match['what']} of {match['bound']} "
            f"at {'most' if match['end'] == 'maximum' else 'least'}{given}",
            _advise_size(role),
            True,
        )
    if match := _ACCOUNT.search(message):
        why = f"the namespace has no service account {match['name']}"
        if match["name"] == "default":
            remedy = (
                "Kubernetes makes it soon after the namespace; if not, ask who runs the cluster."
            )
            return Cause("admission", "absent", why, remedy)
        return Cause("admission", "absent", why, "Make it, or name another.", True)
    if match := _PRIORITY.search(message):
        why = f"the cluster has no priority class {match['name']}"
        remedy = f"Name one that there is: --set {component}.priorityClassName=NAME"
        return Cause("admission", "absent", why, remedy, True)
    if match := _WEBHOOK.search(message):
        why = f"a rule of the cluster ({match['name']}) forbids it: {shorten(match['what'])}"
        return Cause("admission", "absent", why, "Ask who runs the cluster.", True)
    plain = re.sub(r"^Error creating: |^.* failed error: ", "", message)
    return Cause("admission", "absent", f"the cluster refuses {{them}}: {shorten(plain)}")


def _read_quota(match: re.Match[str], own: Amounts) -> Cause:
    requested, used, limited = (
        parse_amounts(dict(pair.split("=", 1) for pair in match[part].split(",")))
        for part in ("requested", "used", "limited")
    )
    zero = Fraction(0)
    short = [
        name
        for name, amount in requested.items()
        if used.get(name, zero) + amount > limited.get(name, zero)
    ] or list(requested)
    # Requests and limits of the same resource often have the same quota: say it once.
    first = short[0]
    same = [n for n in short if all(p.get(n) == p.get(first) for p in (requested, used, limited))]
    names = "" if same == ["pods"] else f" ({join_words(same)})"
    there, taken = limited.get(first, zero), used.get(first, zero)
    # Others in the namespace may end; what is ours stays.
    hopeless = any(
        limited.get(name, zero) - own.get(name, zero) < requested[name] for name in short
    )
    return Cause(
        "quota",
        "absent",
        f"the quota {match['name']} allows {format_amount(first, there)}{names}, "
        f"{format_amount(first, taken)} of it in use, and {{each}} asks for "
        f"{format_amount(first, requested[first])}",
        "Ask for less (--workers, --cpus, --memory), or have the quota raised "
        f"(kubectl describe quota {match['name']}).",
        hopeless,
    )


def _advise_size(role: str) -> str:
    if role == "worker":
        return "Change what each asks for: --cpus, --memory."
    return f"Change what it asks for: --set {role}.resources..."


# -- ends --------------------------------------------------------------------------------------

# docs/exit-codes.md has them all.
_WORKER_CODES: Mapping[int, tuple[str, str, bool]] = {
    10: ("{they} refused the session (exit code 10)", "", True),
    11: (
        "{they} heard nothing from the master (exit code 11)",
        "Does the master run? See pestfleet status SESSION --on kubernetes",
        False,
    ),
}
_MASTER_CODES: Mapping[int, str] = {
    2: "usage",
    3: "the case",
    4: "configuration",
    5: "runs failed",
    6: "the broker",
    7: "the target",
    8: "the session",
}
SENT_AWAY = 12
_INTERRUPTED = 130


def read_exit(code: int, role: str) -> Cause | None:
    """What an exit code says; None for one that is no trouble."""
    if code in (0, SENT_AWAY) or (role == "master" and code == _INTERRUPTED):
        return None
    logs = "See pestfleet logs SESSION --on kubernetes"
    if role == "worker" and code in _WORKER_CODES:
        why, remedy, hopeless = _WORKER_CODES[code]
        return Cause("refused" if code == 10 else "exit", "ended", why, remedy or logs, hopeless)
    if role == "master" and code in _MASTER_CODES:
        why = f"exit code {code} ({_MASTER_CODES[code]})"
        return Cause("exit", "ended", why, logs, code != 8)
    if code > 128:
        return Cause("exit", "ended", f"killed by signal {code - 128} (exit code {code})", logs)
    return Cause("exit", "ended", f"exit code {code}", logs)


def read_memory(limit: str, role: str, *, slots: int = 1, form: Form = "ended") -> Cause:
    """The container used more memory than its limit, a quantity ("" where it has none).

    `slots`: of a worker, which share its memory.
    """
    component = find_component(role)
    if not limit:
        why = "out of memory, on a node that has none left"
        remedy = f"Ask for what it needs: --set {component}.resources..."
        return Cause("memory", form, why, "Say --memory." if role == "worker" else remedy)
    amount = parse_amounts({"memory": limit})["memory"]
    more = double_size(amount / slots)
    if role == "worker":
        remedy = f"Allow more for a slot, such as --memory {more.lower().removesuffix('i')}"
    else:
        remedy = (
            f"Allow more, such as --set {component}.resources.limits.memory={more} "
            f"--set {component}.resources.requests.memory={more}"
        )
    why = f"out of memory: more than the limit of {format_bytes(amount)}"
    return Cause("memory", form, why, remedy)


def double_size(amount: Fraction) -> str:
    """Twice a number of bytes, for a remedy: `8Gi`, `512Mi`."""
    mebibytes = max(1, math.ceil(2 * amount / 2**20))
    return f"{mebibytes}Mi" if mebibytes % 1024 else f"{mebibytes // 1024}Gi"
