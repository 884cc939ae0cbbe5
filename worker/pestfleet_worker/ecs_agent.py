"""The agent of Amazon ECS beside this task, where there is one: HTTP without any credentials."""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

logger = logging.getLogger(__name__)

# Amazon ECS developer guide: "Amazon ECS task metadata endpoint version 4" and "Amazon ECS task
# scale-in protection endpoint".
METADATA, AGENT = "ECS_CONTAINER_METADATA_URI_V4", "ECS_AGENT_URI"
TIMEOUT = 10.0  # seconds for an answer, for which the agent may have to ask ECS
SHORT_TIMEOUT = 3.0  # seconds, where nobody else is asked
_LETTERS = 12  # of a task's id in the name of its worker


def name_task() -> str:
    """`task-` and how the id of this task begins; "" outside of ECS, or where nobody answers."""
    url = os.environ.get(METADATA, "")
    if not url:
        return ""
    try:
        arn = str(ask_agent("GET", f"{url}/task", timeout=SHORT_TIMEOUT)["TaskARN"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the agent of ECS does not say which task this is: %s", error)
        return ""
    return name_worker(arn)


def name_worker(task: str) -> str:
    """The name of the worker in a task, of which this is the ARN."""
    return f"task-{task.rpartition('/')[2][:_LETTERS]}"


def ask_agent(
    method: str, url: str, body: dict[str, Any] | None = None, *, timeout: float = TIMEOUT
) -> Any:
    """The agent's answer, also where it is an error in JSON. Raises `OSError`, `ValueError`."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    # The agent is near: no proxy of the environment's leads to it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            with error:
                return json.loads(error.read())
        except (ValueError, http.client.HTTPException):
            raise OSError(f"HTTP error {error.code}") from error
    except http.client.HTTPException as error:
        raise OSError(f"its answer is cut off, or no HTTP: {error!r}") from error
