"""The secrets of a session's tasks: what each of them unpacks into files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pestfleet.credentials.parts import Choices, make_credentials
from pestfleet.targets.addresses import pack_url
from pestfleet.targets.ecs.naming import Names
from pestfleet.targets.ecs.planned import AmazonPlan

if TYPE_CHECKING:
    from pestfleet.tunnel.keys import TunnelKeys


def make_secrets(
    plan: AmazonPlan,
    broker_url: str,
    *,
    keys: TunnelKeys | None = None,
    parts: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Role -> the files that its tasks unpack, as JSON. Made here, and there only.

    `parts`: of the broker that goes with the plan, where they are made already.
    """
    files: dict[str, Mapping[str, str]] = {}
    roles = [one.role for one in plan.find("secret")]
    if "broker" in roles:
        files |= parts or make_parts(plan.names)
    elif broker_url:
        packed = {name: content.decode() for name, content in pack_url(broker_url).items()}
        files |= {"master": packed, "worker": packed}
    if keys is not None:
        files["tunnel"] = keys.server_files()
    return {role: json.dumps(dict(files.get(role, {}))) for role in roles}


def make_parts(names: Names) -> dict[str, dict[str, str]]:
    """New secrets of broker, master and workers: part -> file name -> content."""
    choices = Choices(names.session, broker_host=f"broker.{names.domain}")
    return make_credentials(choices, parts=("broker", "master", "worker"))
