"""A stand-in of the Pricing API, which moto has not: a small table in the real one's form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from amazon_refusal import Refusal, paginate
from amazon_requests import ApiCall

if TYPE_CHECKING:
    from moto_server import Amazon

HOURS, GIGABYTE_HOURS, MONTH_GIGABYTES = "Hrs", "GB-Hours", "GB-Mo"

# Service code, product family, attributes, unit, US dollars. Frankfurt (EUC1-), as of 2025; of
# other regions the table has nothing.
_REGION = {"regionCode": "eu-central-1", "location": "EU (Frankfurt)", "locationType": "AWS Region"}


def _fargate(usage: str, **more: str) -> dict[str, str]:
    return {"servicecode": "AmazonECS", "usagetype": f"EUC1-Fargate-{usage}", "operation": "",
            "tenancy": "Shared", **more}  # fmt: skip


def _machine(kind: str, cores: str, memory: str) -> dict[str, str]:
    return {
        "servicecode": "AmazonEC2",
        "instanceType": kind,
        "vcpu": cores,
        "memory": memory,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "licenseModel": "No License required",
        "marketoption": "OnDemand",
        "operation": "RunInstances",
        "usagetype": f"EUC1-BoxUsage:{kind}",
    }


TABLE: list[tuple[str, str, dict[str, str], str, str]] = [
    ("AmazonECS", "Compute", _fargate("vCPU-Hours:perCPU", cputype="perCPU"), HOURS,
     "0.0465600000"),
    ("AmazonECS", "Compute", _fargate("GB-Hours", memorytype="perGB"), HOURS, "0.0051100000"),
    ("AmazonECS", "Compute", _fargate("EphemeralStorage-GB-Hours", storagetype="default"),
     GIGABYTE_HOURS, "0.0001270000"),
    ("AmazonEC2", "Compute Instance", _machine("c6i.large", "2", "4 GiB"), HOURS, "0.0970000000"),
    ("AmazonEC2", "Compute Instance", _machine("c6i.4xlarge", "16", "32 GiB"), HOURS,
     "0.7760000000"),
    ("AmazonEC2", "Compute Instance", _machine("m6i.large", "2", "8 GiB"), HOURS, "0.1150000000"),
    ("AmazonEC2", "Storage", {"servicecode": "AmazonEC2", "volumeApiName": "gp3",
                              "usagetype": "EUC1-EBS:VolumeUsage.gp3"}, MONTH_GIGABYTES,
     "0.0952000000"),
    ("AmazonVPC", "VpcEndpoint", {"servicecode": "AmazonVPC", "operation": "VpcEndpoint",
                                  "usagetype": "EUC1-VpcEndpoint-Hours",
                                  "endpointType": "PrivateLink"}, HOURS, "0.0120000000"),
    ("AmazonVPC", "", {"servicecode": "AmazonVPC", "group": "VPCPublicIPv4Address",
                       "operation": "PublicIPv4InUse",
                       "usagetype": "EUC1-PublicIPv4:InUseAddress"}, HOURS, "0.0050000000"),
    ("AmazonS3", "Storage", {"servicecode": "AmazonS3", "storageClass": "General Purpose",
                             "volumeType": "Standard", "usagetype": "EUC1-TimedStorage-ByteHrs"},
     MONTH_GIGABYTES, "0.0245000000"),
    ("AmazonECR", "EC2 Container Registry", {"servicecode": "AmazonECR",
                                             "usagetype": "EUC1-TimedStorage-ByteHrs"},
     MONTH_GIGABYTES, "0.1000000000"),
    ("AmazonCloudWatch", "Data Payload", {"servicecode": "AmazonCloudWatch",
                                          "operation": "PutLogEvents", "group": "Ingested Logs",
                                          "usagetype": "EUC1-DataProcessing-Bytes"}, "GB",
     "0.6300000000"),
    ("AWSSecretsManager", "Secret", {"servicecode": "AWSSecretsManager",
                                     "usagetype": "EUC1-AWSSecretsManager-Secrets"}, "Secrets",
     "0.4000000000"),
]  # fmt: skip


def get_products(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    """GetProducts: filters of the type TERM_MATCH; `PriceList` is a list of texts of JSON."""
    code = call.parameters.get("ServiceCode")
    if not code:
        raise Refusal("InvalidParameterException", "ServiceCode is required")
    if call.region not in ("us-east-1", "eu-central-1", "ap-south-1"):
        raise Refusal("UnrecognizedClientException", "The Pricing API is not in this region")
    wanted = call.parameters.get("Filters") or ()
    found = []
    for number, (service, family, attributes, unit, price) in enumerate(TABLE):
        known = {**_REGION, **attributes, "ServiceCode": service, "productFamily": family}
        if service != code or any(known.get(one["Field"]) != one["Value"] for one in wanted):
            continue
        found.append(json.dumps(_write(number, service, family, {**_REGION, **attributes}, unit,
                                       price)))  # fmt: skip
    answer = {"FormatVersion": "aws_v1", "PriceList": found}
    return paginate(call.parameters, answer, "PriceList", token="NextToken", size="MaxResults",
                    most=100)  # fmt: skip


def _write(
    number: int, service: str, family: str, attributes: dict[str, str], unit: str, price: str
) -> dict[str, Any]:
    """One product as the real answer has it: its terms and prices are keyed by their own codes."""
    sku = f"SKU{number:013d}"
    term, rate = f"{sku}.JRTCKXETXF", f"{sku}.JRTCKXETXF.6YS6EN2CT7"
    product = {"attributes": attributes, "sku": sku}
    return {
        "product": {**product, **({"productFamily": family} if family else {})},
        "serviceCode": service,
        "terms": {
            "OnDemand": {
                term: {
                    "priceDimensions": {
                        rate: {
                            "unit": unit,
                            "endRange": "Inf",
                            "description": f"${price} per {unit}",
                            "appliesTo": [],
                            "rateCode": rate,
                            "beginRange": "0",
                            "pricePerUnit": {"USD": price},
                        }
                    },
                    "sku": sku,
                    "effectiveDate": "2025-01-01T00:00:00Z",
                    "offerTermCode": "JRTCKXETXF",
                    "termAttributes": {},
                }
            }
        },
        "version": "20250101000000",
        "publicationDate": "2025-01-01T00:00:00Z",
    }


HANDLERS = {"pricing:GetProducts": get_products}
