"""Prices of what a session is paid for by: asked of Amazon, or of a dated table.

AWS Price List Query API, GetProducts. Fargate Spot is in no API: its price is a share of that on
demand, of the table. EC2 Spot is asked of EC2 itself (DescribeSpotPriceHistory).
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from pestfleet_worker.errors import ConfigurationError, PestfleetError

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("prices.toml")
# Where the Pricing API has endpoints (AWS General Reference), by the beginning of a region.
ENDPOINTS = {"eu": "eu-central-1", "ap": "ap-south-1", "cn": "cn-northwest-1"}
ENDPOINT = "us-east-1"
FARGATE_SPOT = {
    "fargate-spot-vcpu-hour": "fargate-vcpu-hour",
    "fargate-spot-gb-hour": "fargate-gb-hour",
}

# Item -> code of the service, and how its usage type ends, behind a prefix for the region.
_USAGE = {
    "fargate-vcpu-hour": ("AmazonECS", "Fargate-vCPU-Hours:perCPU"),
    "fargate-gb-hour": ("AmazonECS", "Fargate-GB-Hours"),
    "fargate-disk-gb-hour": ("AmazonECS", "Fargate-EphemeralStorage-GB-Hours"),
    "data-out-gb": ("AWSDataTransfer", "DataTransfer-Out-Bytes"),
    "public-ipv4-hour": ("AmazonVPC", "PublicIPv4:InUseAddress"),
    "endpoint-hour": ("AmazonVPC", "VpcEndpoint-Hours"),
    "secret-month": ("AWSSecretsManager", "AWSSecretsManager-Secrets"),
    "log-gb": ("AmazonCloudWatch", "DataProcessing-Bytes"),
    "s3-gb-month": ("AmazonS3", "TimedStorage-ByteHrs"),
    "ecr-gb-month": ("AmazonECR", "TimedStorage-ByteHrs"),
    "dns-zone-month": ("AmazonRoute53", "HostedZone"),
    "ebs-gb-month": ("AmazonEC2", "EBS:VolumeUsage.gp3"),
}
# Attributes of a service's products, where that is not the region alone.
_ATTRIBUTES = {
    "AmazonRoute53": {"usagetype": "HostedZone"},  # has no regions
    "AmazonEC2": {"regionCode": "", "volumeApiName": "gp3"},
    "AWSDataTransfer": {"fromRegionCode": "", "transferType": "AWS Outbound"},
}
_SIZES = {"large": 1.0, "xlarge": 2.0}  # and 2xlarge, which is 4, …


class Cloud(Protocol):
    """What is needed of `pestfleet.targets.ecs.access.Cloud`."""

    region: str

    def elsewhere(self, region: str) -> Self: ...

    def find_all(
        self, service: str, operation: str, key: str, /, **parameters: Any
    ) -> Iterator[Any]:
        """What a paged request lists below `key`."""
        ...


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a unit of each item. `date`: of the table; of today where Amazon said so.

    `told`: items whose price is Amazon's own of today. `trouble`: why Amazon could not be asked.
    """

    region: str
    date: str
    dollars: Mapping[str, float] = field(default_factory=dict)
    told: frozenset[str] = frozenset()
    trouble: str = ""

    def find(self, item: str) -> float | None:
        """None where nobody knows it."""
        return self.dollars.get(item)

    @property
    def source(self) -> str:
        """Where the prices are from, in one line."""
        table = f"the list prices of {self.date}"
        rest = self.dollars.keys() - self.told
        if not self.told:
            return f"{table}{f': {self.trouble}' if self.trouble else ''}"
        if not rest:
            return f"Amazon's Pricing API, {today()}"
        shown = ", ".join(sorted(rest))
        why = f" ({self.trouble})" if self.trouble else ""
        return f"Amazon's Pricing API, {today()}; of {table}: {shown}{why}"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def read_table(region: str, items: Iterable[str]) -> Prices:
    """The dated prices of these items; those that the table has not are left out."""
    with TABLE.open("rb") as file:
        table = tomllib.load(file)
    known: dict[str, Any] = table["regions"].get(region, {})
    if known:
        known = table["everywhere"] | known
    found: dict[str, float] = {}
    for item in items:
        if item in FARGATE_SPOT and known:
            found[item] = known[FARGATE_SPOT[item]] * known["spot"]
        elif item in known:
            found[item] = known[item]
        elif item.startswith(("ec2:", "ec2-spot:")):
            price = _find_machine(table["ec2"].get(region, {}), name_type(item))
            if price:
                share = known["ec2-spot"] if item.startswith("ec2-spot:") else 1.0
                found[item] = price * share
    return Prices(region, table["date"], found)


def find_prices(region: str, items: Iterable[str], cloud: Cloud | None = None) -> Prices:
    """Prices of these items: of Amazon, and of the table what it does not say. Never raises.

    `cloud`: of any region; without it, nobody is asked.
    """
    wanted = list(dict.fromkeys(items))
    table = read_table(region, wanted)
    if cloud is None:
        return table
    told: dict[str, float] = {}
    trouble = ""
    # Where the prices are told, and where the region is itself: a client is made once.
    endpoint = ENDPOINTS.get(region.partition("-")[0], ENDPOINT)
    place = cloud.elsewhere(endpoint)
    own = place if endpoint == region else cloud.elsewhere(region)
    bases = [FARGATE_SPOT[item] for item in wanted if item in FARGATE_SPOT]
    silent: set[bool] = set()  # of both services
    for item in dict.fromkeys([*wanted, *bases]):
        is_spot = item.startswith("ec2-spot:")
        if is_spot in silent:
            continue
        try:
            price = _ask_price(place, own, region, item)
        except PestfleetError as error:
            # What is not allowed, or does not answer, is so for the other items, too.
            silent.add(is_spot)
            trouble = error.message
            logger.info("no prices of Amazon: %s", trouble)
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            trouble = f"its answer for {item} cannot be read"
            logger.warning("%s: %r", trouble, error)
            continue
        if price is not None:
            told[item] = price
    spot = _share_spot(told, region, wanted)
    return Prices(region, table.date, {**table.dollars, **told, **spot}, frozenset(told), trouble)


def _ask_price(place: Cloud, own: Cloud, region: str, item: str) -> float | None:
    """What Amazon says that a unit costs; None where it does not say. Raises as `Cloud` does."""
    if item in FARGATE_SPOT:
        return None
    if item.startswith("ec2-spot:"):
        return _ask_spot(own, name_type(item))
    if item.startswith("ec2:"):
        # As the pages of prices show them: shared hardware, Linux, no reservation.
        filters = {
            "regionCode": region, "instanceType": name_type(item), "operatingSystem": "Linux",
            "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used",
        }  # fmt: skip
        return _ask_products(place, "AmazonEC2", filters, "")
    if item not in _USAGE:
        return None
    service, usage = _USAGE[item]
    known = _ATTRIBUTES.get(service, {"regionCode": ""})
    filters = {name: value or region for name, value in known.items()}
    return _ask_products(place, service, filters, usage)


def _ask_products(
    cloud: Cloud, service: str, filters: Mapping[str, str], usage: str
) -> float | None:
    """The price of the first tier that costs, of the product whose usage type ends so."""
    products = cloud.find_all(
        "pricing",
        "get_products",
        "PriceList",
        ServiceCode=service,
        Filters=[
            {"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()
        ],
        FormatVersion="aws_v1",
    )
    for text in products:
        product = json.loads(text) if isinstance(text, str) else text
        found = str(product["product"]["attributes"].get("usagetype", ""))
        # Other kinds have words of their own before it: USE1-Fargate-ARM-vCPU-Hours:perCPU.
        if usage and found != usage and not _has_prefix(found, usage):
            continue
        price = read_product(product)
        if price is not None:
            return price
    return None


def _has_prefix(found: str, usage: str) -> bool:
    """Is that the usage type, behind a region's prefix such as EUC1- or EU-?"""
    prefix = found.removesuffix(usage)
    return prefix != found and prefix.endswith("-") and prefix[:-1].isalnum() and prefix.isupper()


def read_product(product: Mapping[str, Any]) -> float | None:
    """The price on demand of an entry of a price list, of its first tier that costs, in dollars."""
    tiers: list[tuple[float, float]] = []
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for tier in term["priceDimensions"].values():
            dollars = tier["pricePerUnit"].get("USD")
            if dollars is not None and float(dollars) > 0:
                tiers.append((float(tier.get("beginRange") or 0), float(dollars)))
    return min(tiers)[1] if tiers else None


def _ask_spot(cloud: Cloud, machine: str) -> float | None:
    """The spot price now, of the dearest zone."""
    history = cloud.find_all(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=[machine],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.now(UTC),
    )
    return max((float(entry["SpotPrice"]) for entry in history), default=None)


def _share_spot(told: Mapping[str, float], region: str, wanted: Iterable[str]) -> dict[str, float]:
    """Fargate Spot, as the table's share of what Amazon says for Fargate."""
    found = {}
    for item in wanted:
        base = FARGATE_SPOT.get(item, "")
        if base in told:
            table = read_table(region, (item, base)).dollars
            if base in table:
                found[item] = told[base] * table[item] / table[base]
    return found


def name_type(item: str) -> str:
    """`ec2:c7i.large-hour` -> `c7i.large`."""
    return item.partition(":")[2].removesuffix("-hour")


def _find_machine(families: Mapping[str, float], machine: str) -> float | None:
    family, _, size = machine.partition(".")
    times = size.removesuffix("xlarge")
    factor = _SIZES.get(size) or (2.0 * int(times) if times != size and times.isdigit() else None)
    return families[family] * factor if family in families and factor else None


def need_price(prices: Prices, item: str) -> float:
    """Raises `ConfigurationError` where nobody knows the price."""
    price = prices.find(item)
    if price is None:
        raise ConfigurationError(
            f"nobody knows what {item} costs in {prices.region}",
            remedy="Amazon's Pricing API says it where you have the permission "
            "pricing:GetProducts; the table of prices here has the main regions only.",
        )
    return price
