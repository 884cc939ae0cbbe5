"""Names and tags of a session's resources in Amazon's cloud, in one place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tags. Each resource of a session has the first two.
SESSION, ROLE = "pestfleet:session", "pestfleet:role"
OWNER, EXPIRES, FOLDER = "pestfleet:owner", "pestfleet:expires", "pestfleet:folder"
CLUSTER = "pestfleet:cluster"  # of ECS, where it is shared with others
REGION = "pestfleet:region"  # of roles of IAM, which knows no regions

ROLES = ("broker", "master", "worker", "tunnel")
PATH = "/pestfleet/"  # of roles of IAM
_LONGEST = 32  # letters of a name; roles of IAM have up to 64, with what we add


@dataclass(frozen=True, slots=True)
class Names:
    """What the resources of a session are called."""

    session: str

    @property
    def stem(self) -> str:
        """Letters, digits and hyphens that no other session's stem has."""
        plain = re.sub(r"[^a-z0-9-]+", "-", self.session.lower()).strip("-")
        if plain == self.session and len(plain) <= _LONGEST:
            return plain
        digest = hashlib.sha256(self.session.encode()).hexdigest()[:8]
        return f"{plain[: _LONGEST - 9].rstrip('-')}-{digest}".lstrip("-")

    @property
    def cluster(self) -> str:
        return f"pestfleet-{self.stem}"

    @property
    def repository(self) -> str:
        """Of ECR; an image a tag: worker, master, broker, tunnel."""
        return f"pestfleet/{self.stem}"

    @property
    def logs(self) -> str:
        """The log group; streams are ROLE/CONTAINER/TASK."""
        return f"/pestfleet/{self.stem}"

    @property
    def domain(self) -> str:
        """The private DNS namespace; the broker is broker.DOMAIN."""
        return f"{self.stem}.pestfleet.internal"

    @property
    def schedules(self) -> str:
        """The group of schedules."""
        return f"pestfleet-{self.stem}"

    def service(self, role: str) -> str:
        return f"{self.cluster}-{role}"

    def family(self, role: str) -> str:
        """Of task definitions."""
        return f"{self.cluster}-{role}"

    def secret(self, role: str) -> str:
        return f"pestfleet/{self.stem}/{role}"

    def group(self, role: str) -> str:
        """The security group."""
        return f"{self.cluster}-{role}"

    def role(self, role: str) -> str:
        """Of IAM: of the tasks with that role, or `execution`, `schedule`, `instance`."""
        return f"{self.cluster}-{role}"


def make_tags(session: str, role: str = "", **more: str) -> dict[str, str]:
    """The tags of a resource; `more`: owner, expires, folder, where known."""
    tags = {SESSION: session} | ({ROLE: role} if role else {})
    known = {"owner": OWNER, "expires": EXPIRES, "folder": FOLDER}
    # What a tag's value can have (IAM user guide, "Rules for tagging"), up to 256 letters.
    clean = {known[k]: re.sub(r"[^\w\s+=.:/@-]", "-", v)[:256] for k, v in more.items() if v}
    return tags | clean


def as_list(tags: Mapping[str, str], *, key: str = "Key", value: str = "Value") -> list[Any]:
    """Tags as most of Amazon's APIs want them; ECS writes `key` and `value` small."""
    return [{key: name, value: text} for name, text in tags.items()]


def as_dict(tags: Sequence[Mapping[str, str]] | None) -> dict[str, str]:
    """Tags as an answer has them, whichever way it writes them."""
    pairs = [{name.lower(): text for name, text in tag.items()} for tag in tags or ()]
    return {pair["key"]: pair["value"] for pair in pairs}
