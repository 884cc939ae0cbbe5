"""Where a broker is, seen from here and from a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from pestfleet.targets.addresses import find_place, pack_url, readdress
from pestfleet_worker.endpoint import read_endpoint
from pestfleet_worker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("amqp://u:p@broker//", ("broker", 5672)),
        ("amqps://u:p@broker/v", ("broker", 5671)),
        ("amqps://u:p@[::1]:7/v", ("::1", 7)),
    ],
)
def test_the_place_of_a_broker(url: str, place: tuple[str, int]) -> None:
    assert find_place(url) == place


def test_a_broker_at_another_place_shows_the_same_name() -> None:
    url = readdress("amqps://u:p%40@broker.example.org/v", host="tunnel", port=4004)
    assert url.startswith("amqps://u:p%40@tunnel:4004/v?")
    tls = read_endpoint(url).tls
    assert tls is not None
    assert tls["server_hostname"] == "broker.example.org"


def test_an_address_of_ipv6_has_its_brackets() -> None:
    assert readdress("amqp://u:p@a//", host="::1", port=4004) == "amqp://u:p@[::1]:4004//"
    assert pack_url("amqp://u:p@[::1]:7//")["broker-url"] == b"amqp://u:p@[::1]:7//"


def test_all_files_that_a_url_names_go_with_it(tmp_path: Path) -> None:
    names = {"cacertfile": "ca.pem", "certfile": "cert.pem", "keyfile": "key.pem"}
    paths = {name: tmp_path / f"my-{file}" for name, file in names.items()}
    for name, path in paths.items():
        path.write_text(name)
    query = "&".join(f"{name}={path}" for name, path in paths.items())

    files = pack_url(f"amqps://u:p@broker/v?{query}&verify=verify_peer")

    url = files.pop("broker-url").decode()
    assert files == {file: name.encode() for name, file in names.items()}
    for name, file in names.items():
        assert f"{name}=%2Fsecrets%2F{file}" in url
    assert str(tmp_path) not in url

    paths["keyfile"].unlink()
    with pytest.raises(ConfigurationError, match="the keyfile of the broker's URL"):
        pack_url(f"amqps://u:p@broker/v?{query}")
