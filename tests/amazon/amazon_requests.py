"""Which operation of Amazon's APIs a request is, by botocore's models.

Current boto3 speaks CBOR with some services, moto does not yet: `to_json` and `to_cbor` translate.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from botocore import parsers, serialize, session
from botocore.model import OperationModel, ServiceModel
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request
from moto.core.routing import NotFound, get_service_router
from moto.core.utils import get_service_model

_SCOPE = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
_NAMES = {"tagging": "resourcegroupstaggingapi", "elasticfilesystem": "efs",
          "servicequotas": "service-quotas"}  # fmt: skip
_PREFIXES = {"tagging": "tag"}

# Amazon S3 user guide, "Required permissions for Amazon S3 API operations".
_S3 = {
    "ListBuckets": "ListAllMyBuckets",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListObjectVersions": "ListBucketVersions",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "CopyObject": "PutObject",
    "DeleteObjects": "DeleteObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "GetBucketEncryption": "GetEncryptionConfiguration",
}
# Service authorization reference, "Dependent actions", and the guides of the services: who tags
# what is being made needs these, too.
_TAGGING = {
    "ecs": "ecs:TagResource",
    "ec2": "ec2:CreateTags",
    "logs": "logs:TagResource",
    "ecr": "ecr:TagResource",
    "secretsmanager": "secretsmanager:TagResource",
    "servicediscovery": "servicediscovery:TagResource",
    "scheduler": "scheduler:TagResource",
    "autoscaling": "autoscaling:CreateOrUpdateTags",
}
_IAM_TAGGING = {
    "CreateRole": "iam:TagRole",
    "CreateInstanceProfile": "iam:TagInstanceProfile",
    "CreatePolicy": "iam:TagPolicy",
}
# AWS Cloud Map developer guide, "Permissions required": it asks Route 53 in the caller's name.
_BEHIND = {
    "servicediscovery:CreatePrivateDnsNamespace": (
        "route53:CreateHostedZone",
        "route53:GetHostedZone",
        "route53:ListHostedZonesByName",
        "ec2:DescribeVpcs",
        "ec2:DescribeRegions",
    ),
    "servicediscovery:DeleteNamespace": ("route53:DeleteHostedZone",),
    "servicediscovery:CreateService": ("route53:GetHostedZone", "route53:ListHostedZonesByName"),
}
_PASSING = re.compile(r"^(task|execution|instance)?_?role_?arn$|^iam_?instance_?profile$", re.I)


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One request. `service`: boto3's name of it; `action`: IAM's name, such as ecs:CreateService.

    `parameters`: as boto3 was given them (of S3 those of the URL only). `implied`: further actions
    that IAM wants for it. `caller`: the key that signed it, or the ARN of a task's role.
    """

    service: str
    operation: str
    action: str
    region: str
    protocol: str
    parameters: Mapping[str, Any]
    implied: tuple[str, ...] = ()
    caller: str = ""

    @property
    def actions(self) -> tuple[str, ...]:
        return (self.action, *self.implied)


def read_call(environ: dict[str, Any]) -> ApiCall | None:
    """The operation that a WSGI request asks for; its body can be read again. None: none known."""
    signed = environ.get("HTTP_AUTHORIZATION", "") or _read_presigned(environ)
    scope = _SCOPE.search(signed)
    if scope is None:
        return None
    key, region, signing = scope.groups()
    service = _NAMES.get(signing, signing)
    model = _load(service)
    if model is None:
        return None
    protocol, operation, parameters = _route(environ, model)
    if operation is None:
        return None
    prefix = _PREFIXES.get(signing, signing)
    name = _S3.get(operation.name, operation.name) if service == "s3" else operation.name
    action = f"{prefix}:{name}"
    return ApiCall(
        service=service,
        operation=operation.name,
        action=action,
        region=region,
        protocol=protocol,
        parameters=parameters,
        implied=tuple(dict.fromkeys(_find_implied(prefix, operation.name, action, parameters))),
        caller=key,
    )


def to_json(environ: dict[str, Any], call: ApiCall) -> None:
    """Make a request in CBOR one in JSON."""
    model = _load(call.service)
    assert model is not None
    body = json.dumps(call.parameters, default=_write_plain).encode()
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ["CONTENT_TYPE"] = "application/x-amz-json-1.1"
    environ["HTTP_X_AMZ_TARGET"] = f"{model.metadata['targetPrefix']}.{call.operation}"
    environ["PATH_INFO"] = environ["RAW_URI"] = environ["REQUEST_URI"] = "/"


def to_cbor(call: ApiCall, status: int, body: bytes) -> bytes:
    """An answer in JSON as CBOR."""
    if status >= 400:
        fault = json.loads(body or b"{}")
        said = fault.get("message") or fault.get("Message") or ""
        return write_cbor_texts({"__type": str(fault.get("__type", "")), "message": str(said)})
    model = _load(call.service)
    assert model is not None
    shape = model.operation_model(call.operation).output_shape
    if shape is None:
        return b"\xa0"
    answer = parsers.JSONParser().parse({"status_code": 200, "headers": {}, "body": body}, shape)
    answer.pop("ResponseMetadata", None)
    made = bytearray()
    serialize.RpcV2CBORSerializer()._serialize_data_item(made, answer, shape)
    return bytes(made)


def write_cbor_texts(texts: Mapping[str, str]) -> bytes:
    """A map of at most 23 texts."""
    made = bytearray([0xA0 | len(texts)])
    for text in (word for pair in texts.items() for word in pair):
        data = text.encode()
        made += b"\x79" + len(data).to_bytes(2, "big") + data  # a text with a length of 2 bytes
    return bytes(made)


def read_body(environ: dict[str, Any]) -> bytes:
    """The body of a request, which can be read again."""
    data: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(data)
    return data


def _read_presigned(environ: dict[str, Any]) -> str:
    credential = dict(parse_qsl(environ.get("QUERY_STRING", ""))).get("X-Amz-Credential", "")
    return f"Credential={credential}"


@functools.cache
def _load(service: str) -> ServiceModel | None:
    loader = session.get_session()
    return loader.get_service_model(service) if service in loader.get_available_services() else None


def _route(
    environ: dict[str, Any], model: ServiceModel
) -> tuple[str, OperationModel | None, dict[str, Any]]:
    """Protocol, operation (if it is known) and parameters of a request."""
    if environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor":
        name = environ["PATH_INFO"].rsplit("/", 1)[-1]
        parser = parsers.RpcV2CBORParser()
        data = read_body(environ)
        given = parser._initial_body_parse(data) if data else {}
        return "smithy-rpc-v2-cbor", _find_operation(model, name), given
    if target := environ.get("HTTP_X_AMZ_TARGET", ""):
        operation = _find_operation(model, target.rsplit(".", 1)[-1])
        return "json", operation, json.loads(read_body(environ) or b"{}")
    protocol = model.metadata["protocol"]
    if protocol in ("query", "ec2"):
        values = dict(parse_qsl(read_body(environ).decode(), keep_blank_values=True))
        operation = _find_operation(model, values.get("Action", ""))
        if operation is None:
            return protocol, None, {}
        known = get_service_model(model.service_name).operation_model(operation.name)
        given = PROTOCOL_PARSERS[protocol](known).parse(
            {"method": "POST", "values": values, "headers": {}, "body": b"", "url_path": "/"}
        )
        return protocol, operation, given
    request = Request(environ.copy())
    try:
        found, labels = get_service_router(model.service_name).match(request)
    except NotFound:
        return protocol, None, {}
    given = {**labels, **dict(parse_qsl(environ.get("QUERY_STRING", "")))}
    operation = _find_operation(model, found.name)
    if protocol == "rest-json":
        given.update(_name_queried(operation, given))
        if body := read_body(environ):
            given.update(json.loads(body))
    return protocol, operation, given


def _name_queried(operation: OperationModel | None, given: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the URL's query, such as groupName, as boto3 calls them: GroupName."""
    if operation is None or operation.input_shape is None:
        return {}
    names = {
        shape.serialization.get("name", name): name
        for name, shape in operation.input_shape.members.items()
        if shape.serialization.get("location") == "querystring"
    }
    return {names[key]: value for key, value in given.items() if key in names}


def _find_operation(model: ServiceModel, name: str) -> OperationModel | None:
    return model.operation_model(name) if name in model.operation_names else None


def _find_implied(
    prefix: str, operation: str, action: str, parameters: Mapping[str, Any]
) -> Iterator[str]:
    yield from _BEHIND.get(action, ())
    if operation.startswith(("Create", "Register", "Run", "Request")) and _has_tags(parameters):
        if prefix == "iam":
            yield from filter(None, [_IAM_TAGGING.get(operation)])
        else:
            yield from filter(None, [_TAGGING.get(prefix)])
    passes = action in (
        "ecs:RegisterTaskDefinition", "scheduler:CreateSchedule", "scheduler:UpdateSchedule",
        "ec2:RunInstances", "autoscaling:CreateAutoScalingGroup", "ecs:RunTask",
    )  # fmt: skip
    if passes and find_roles(parameters):
        yield "iam:PassRole"


def _has_tags(parameters: Mapping[str, Any]) -> bool:
    names = ("tags", "Tags", "TagList", "TagSpecifications", "TagSpecification")
    return any(parameters.get(name) for name in names)


def find_roles(parameters: Any) -> list[str]:
    """Roles (ARNs) and instance profiles (names or ARNs) that parameters of a request pass on."""
    if isinstance(parameters, Mapping):
        found = []
        for name, value in parameters.items():
            if _PASSING.match(name):
                found += [value] if isinstance(value, str) else list(value.values())
            else:
                found += find_roles(value)
        return found
    if isinstance(parameters, list):
        return [role for item in parameters for role in find_roles(item)]
    return []


def _write_plain(value: Any) -> Any:
    """What JSON has no form for, as Amazon's JSON writes it."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"no JSON for {type(value)}")
