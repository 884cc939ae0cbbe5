"""A cluster's API that is not there: it answers with what a test gives it."""

from __future__ import annotations

from typing import Any

from pestfleet.targets.kubernetes.access import Refused

Body = dict[str, Any]

FORBIDDEN = Refused(403, "Forbidden", "you may not")
ABSENT = Refused(404, "NotFound", "there is none")


class FakeAccess:
    """`answers`: end of a path -> an object, a list of items, or what is raised.

    What has no answer is refused with 404. `asked` has METHOD path of each request, in order;
    `queries` what logs were asked for with.
    """

    def __init__(self, answers: dict[str, Any], *, namespace: str = "wells") -> None:
        self.answers = answers
        self.namespace = namespace
        self.server = "https://cluster.test"
        self.asked: list[str] = []
        self.queries: list[dict[str, object]] = []
        self.posted: list[tuple[str, Body, dict[str, Any]]] = []

    def find_path(self, version: str, plural: str, name: str = "") -> str:
        path = f"/{version}/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    def get(self, path: str, **query: object) -> Any:
        return self._answer("GET", path)

    def find_all(self, path: str, **query: object) -> Any:
        return list(self._answer("LIST", path))

    def post(self, path: str, body: Body, **query: object) -> Any:
        self.posted.append((path, body, query))
        return self._answer("POST", path)

    def read_text(self, path: str, **query: object) -> Any:
        self.queries.append(query)
        return self._answer("GET", path)

    def _answer(self, method: str, path: str) -> Any:
        self.asked.append(f"{method} {path}")
        fitting = [end for end in self.answers if path.endswith(end)]
        answer = self.answers[max(fitting, key=len)] if fitting else ABSENT
        if isinstance(answer, Exception):
            raise answer
        return answer
