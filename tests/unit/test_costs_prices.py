"""Prices: what Amazon's answers say, and the table where there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, Self

import pytest

from pestfleet.costs import prices as module
from pestfleet.costs.prices import find_prices, need_price, read_product, read_table, today
from pestfleet_worker.errors import ConfigurationError, TargetError

REGION = "eu-central-1"
FARGATE = ("fargate-vcpu-hour", "fargate-gb-hour")
Answer = Callable[[str, str, dict[str, Any]], list[Any]]


def make_product(usage: str, *tiers: tuple[str, str], currency: str = "USD") -> str:
    """An entry of a price list, in the form of the Price List Query API; tiers: begin, price."""
    dimensions = {
        f"SKU.JRTCKXETXF.{number}": {
            "unit": "hours",
            "beginRange": begin,
            "endRange": "Inf",
            "pricePerUnit": {currency: price},
        }
        for number, (begin, price) in enumerate(tiers)
    }
    return json.dumps(
        {
            "product": {"productFamily": "Compute", "attributes": {"usagetype": usage}},
            "serviceCode": "AmazonECS",
            "terms": {"OnDemand": {"SKU.JRTCKXETXF": {"priceDimensions": dimensions}}},
        }
    )


class FakeCloud:
    """Answers as `answer` says; checks each request against boto3's own model of it."""

    def __init__(self, answer: Answer, region: str = "us-west-2", seen: Any = None) -> None:
        self.region = region
        self.answer = answer
        self.seen: list[tuple[str, str, dict[str, Any]]] = [] if seen is None else seen

    def elsewhere(self, region: str) -> Self:
        return type(self)(self.answer, region, self.seen)

    def find_all(
        self, service: str, operation: str, key: str, /, **parameters: Any
    ) -> Iterator[Any]:
        check_request(service, operation, key, parameters)
        self.seen.append((self.region, operation, parameters))
        yield from self.answer(self.region, operation, parameters)


def check_request(service: str, operation: str, key: str, parameters: dict[str, Any]) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    session = botocore.session.get_session()
    model = session.get_service_model(service)
    name = "".join(word.title() for word in operation.split("_"))
    shape = model.operation_model(name)
    report = ParamValidator().validate(parameters, shape.input_shape)
    assert not report.has_errors(), report.generate_report()
    pages = session.get_component("data_loader").load_service_model(service, "paginators-1")
    assert pages["pagination"][name]["result_key"] in (key, [key])
    assert key in shape.output_shape.members


def filters_of(parameters: dict[str, Any]) -> dict[str, str]:
    return {entry["Field"]: entry["Value"] for entry in parameters["Filters"]}


def test_the_table_has_what_a_session_needs_in_each_of_its_regions() -> None:
    items = [*module._USAGE, *module.FARGATE_SPOT]
    regions = re.findall(r"^\[regions\.(\S+)\]$", module.TABLE.read_text(), re.MULTILINE)
    assert {"us-east-1", "eu-central-1", "ap-southeast-2"} <= set(regions)
    for region in regions:
        found = read_table(region, items)
        assert found.dollars.keys() == set(items), region
        assert all(0.0 < price < 1.0 for price in found.dollars.values())
        assert found.find("fargate-spot-vcpu-hour") < found.find("fargate-vcpu-hour")  # type: ignore[operator]
    assert date.fromisoformat(read_table("us-east-1", items).date) < date.today()


def test_the_table_knows_nothing_of_other_regions() -> None:
    found = read_table("mars-north-1", [*FARGATE, "fargate-spot-gb-hour", "ec2:c5.large-hour"])
    assert found.dollars == {}
    with pytest.raises(ConfigurationError, match="nobody knows what fargate-gb-hour costs in mars"):
        need_price(found, "fargate-gb-hour")


@pytest.mark.parametrize(
    ("machine", "price"),
    [("c5.large", 0.085), ("c5.xlarge", 0.17), ("c5.4xlarge", 0.68), ("c5.24xlarge", 4.08)],
)
def test_machines_cost_by_their_size(machine: str, price: float) -> None:
    found = read_table("us-east-1", [f"ec2:{machine}-hour", f"ec2-spot:{machine}-hour"])
    assert found.find(f"ec2:{machine}-hour") == pytest.approx(price)
    assert found.find(f"ec2-spot:{machine}-hour") == pytest.approx(0.45 * price)


@pytest.mark.parametrize("machine", ["c5.metal", "zz9.large", "c5.0x", "c5"])
def test_machines_that_the_table_does_not_know(machine: str) -> None:
    assert read_table("us-east-1", [f"ec2:{machine}-hour"]).dollars == {}


def test_amazon_says_the_price_of_the_right_product() -> None:
    def answer(region: str, operation: str, parameters: dict[str, Any]) -> list[Any]:
        assert (region, parameters["ServiceCode"]) == ("eu-central-1", "AmazonECS")
        assert filters_of(parameters) == {"regionCode": REGION}
        return [
            make_product("EUC1-Fargate-ARM-vCPU-Hours:perCPU", ("0", "0.03725")),
            make_product("EUC1-Fargate-Windows-vCPU-Hours:perCPU", ("0", "0.1")),
            make_product("EUC1-Fargate-vCPU-Hours:perCPU", ("0", "0.0500000000")),
            make_product("EUC1-Fargate-ARM-GB-Hours", ("0", "0.004")),
            make_product("EUC1-Fargate-GB-Hours", ("0", "0.006")),
        ]

    cloud = FakeCloud(answer)
    found = find_prices(REGION, [*FARGATE, "fargate-spot-vcpu-hour"], cloud)
    assert (found.find("fargate-vcpu-hour"), found.find("fargate-gb-hour")) == (0.05, 0.006)
    # Spot is in no API: the table's share of what Amazon says.
    table = read_table(REGION, ["fargate-spot-vcpu-hour", "fargate-vcpu-hour"])
    share = need_price(table, "fargate-spot-vcpu-hour") / need_price(table, "fargate-vcpu-hour")
    assert found.find("fargate-spot-vcpu-hour") == pytest.approx(0.05 * share)
    assert found.source == (
        f"Amazon's Pricing API, {today()}; of the list prices of {found.date}: "
        "fargate-spot-vcpu-hour"
    )


def test_spot_alone_asks_for_what_it_is_a_share_of() -> None:
    product = make_product("USE1-Fargate-GB-Hours", ("0", "0.01"))
    found = find_prices("us-east-1", ["fargate-spot-gb-hour"], FakeCloud(lambda *_: [product]))
    assert found.find("fargate-spot-gb-hour") == pytest.approx(0.0033)


@pytest.mark.parametrize(
    ("region", "endpoint"),
    [("us-west-2", "us-east-1"), ("eu-north-1", "eu-central-1"), ("ap-southeast-2", "ap-south-1"),
     ("sa-east-1", "us-east-1")],
)  # fmt: skip
def test_the_api_is_asked_where_it_has_an_endpoint(region: str, endpoint: str) -> None:
    cloud = FakeCloud(lambda *_: [])
    find_prices(region, ["secret-month"], cloud)
    assert [place for place, *_ in cloud.seen] == [endpoint]


def test_machines_and_their_spot_prices() -> None:
    def answer(region: str, operation: str, parameters: dict[str, Any]) -> list[Any]:
        if operation == "describe_spot_price_history":
            assert (region, parameters["InstanceTypes"]) == (REGION, ["c7i.large"])
            return [{"SpotPrice": "0.0312"}, {"SpotPrice": "0.0399"}, {"SpotPrice": "0.0280"}]
        expected = {"regionCode": REGION, "instanceType": "c7i.large", "tenancy": "Shared"}
        assert filters_of(parameters).items() >= expected.items()
        return [make_product("EUC1-BoxUsage:c7i.large", ("0", "0.10175"))]

    items = ["ec2:c7i.large-hour", "ec2-spot:c7i.large-hour"]
    found = find_prices(REGION, items, FakeCloud(answer))
    assert [found.find(item) for item in items] == [0.10175, 0.0399]
    assert found.source == f"Amazon's Pricing API, {today()}"


def test_services_without_regions_are_asked_for_without_one() -> None:
    cloud = FakeCloud(lambda *_: [make_product("HostedZone", ("25", "0.1"), ("0", "0.5"))])
    assert find_prices(REGION, ["dns-zone-month"], cloud).find("dns-zone-month") == 0.5
    assert filters_of(cloud.seen[0][2]) == {"usagetype": "HostedZone"}


def test_the_first_tier_that_costs_counts() -> None:
    assert read_product(json.loads(make_product("x", ("100", "0.09"), ("0", "0.0")))) == 0.09
    assert read_product(json.loads(make_product("x", ("0", "1.0"), currency="CNY"))) is None
    assert read_product({"product": {}, "terms": {}}) is None


def test_the_table_counts_where_amazon_does_not_let_us_ask() -> None:
    def refuse(*_: Any) -> list[Any]:
        raise TargetError("Amazon refuses pricing:GetProducts: not authorized")

    cloud = FakeCloud(refuse)
    found = find_prices(REGION, FARGATE, cloud)
    assert (found.dollars, found.told) == (read_table(REGION, FARGATE).dollars, frozenset())
    assert found.source.startswith(f"the list prices of {found.date}: Amazon refuses")
    assert len(cloud.seen) == 1, "it is asked for one item only"


def test_spot_prices_are_asked_for_where_the_pricing_api_is_not_ours() -> None:
    def answer(region: str, operation: str, parameters: dict[str, Any]) -> list[Any]:
        if operation == "get_products":
            raise TargetError("Amazon refuses pricing:GetProducts: not authorized")
        return [{"SpotPrice": "0.04"}]

    items = ["ec2:c5.large-hour", "secret-month", "ec2-spot:c5.large-hour"]
    found = find_prices(REGION, items, FakeCloud(answer))
    assert [found.find(item) for item in items] == [0.097, 0.40, 0.04]
    assert found.told == {"ec2-spot:c5.large-hour"}


def test_transfers_out_are_told_by_the_region_that_they_come_from() -> None:
    products = [make_product("EUC1-DataTransfer-Out-Bytes", ("0", "0.0"), ("100", "0.09"))]
    cloud = FakeCloud(lambda *_: products)
    assert find_prices(REGION, ["data-out-gb"], cloud).find("data-out-gb") == 0.09
    assert filters_of(cloud.seen[0][2])["fromRegionCode"] == REGION


@pytest.mark.parametrize("answer", ["not JSON", "[]", "{}", '{"product": 1}'])
def test_an_answer_that_cannot_be_read_is_none(answer: str) -> None:
    found = find_prices(REGION, FARGATE, FakeCloud(lambda *_: [answer]))
    assert found.dollars == read_table(REGION, FARGATE).dollars
    assert "cannot be read" in found.source


def test_without_a_cloud_nobody_is_asked() -> None:
    found = find_prices("us-east-1", FARGATE)
    assert found.find("fargate-vcpu-hour") == 0.04048
    assert found.source == f"the list prices of {found.date}"
