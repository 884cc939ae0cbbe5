"""Machine images that can be started: the account's own, and Amazon's for containers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pestfleet.targets.ecs.access import Cloud
from pestfleet_worker.errors import ConfigurationError

# "Retrieving Amazon ECS-optimized Linux AMI metadata", Amazon ECS developer guide.
_PUBLIC = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
RECOMMENDED = {
    "x86_64": f"{_PUBLIC}/recommended/image_id",
    "arm64": f"{_PUBLIC}/arm64/recommended/image_id",
}
OWN, AMAZON = "yours", "amazon"


@dataclass(frozen=True, slots=True)
class MachineImage:
    """An image as EC2 tells it. `size`: of its disks, in GB; `created`: ISO time, or "".

    `disks`: device -> GB; `root`: the device that it starts from. `whose`: yours or amazon.
    """

    id: str
    name: str
    architecture: str
    created: str
    size: int
    root: str
    disks: dict[str, int]
    whose: str
    description: str = ""
    windows: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def list_images(cloud: Cloud) -> list[MachineImage]:
    """Those of this account, the newest first; then Amazon's. Raises `TargetError`."""
    own = [
        _read(image, OWN)
        for image in cloud.find_all("ec2", "describe_images", "Images", Owners=["self"])
        if image.get("State") == "available"
    ]
    own.sort(key=lambda image: (image.created, image.id), reverse=True)
    return own + find_recommended(cloud, RECOMMENDED)


def find_recommended(cloud: Cloud, architectures: Iterable[str]) -> list[MachineImage]:
    """Amazon's images for containers, by a parameter that everybody can read."""
    answer = cloud.call("ssm", "get_parameters", Names=[RECOMMENDED[a] for a in architectures])
    ids = [parameter["Value"] for parameter in answer["Parameters"]]
    return _find(cloud, AMAZON, ImageIds=ids) if ids else []


def find_image(cloud: Cloud, name: str, architecture: str) -> MachineImage:
    """The image of an id or a name, which starts on that architecture.

    "": Amazon's for containers. Raises `ConfigurationError`, `TargetError`.
    """
    if not name:
        found = find_recommended(cloud, [architecture])
        if not found:
            raise ConfigurationError(
                f"Amazon has no image for containers in {cloud.region}",
                remedy="Name one: --image ami-…; pestfleet capacity images lists yours.",
            )
        return found[0]
    if re.fullmatch(r"ami-[0-9a-f]+", name):
        found = _find(cloud, OWN, Filters=[{"Name": "image-id", "Values": [name]}])
    else:
        # A filter's asterisks and question marks stand for other letters.
        escaped = re.sub(r"([\\*?])", r"\\\1", name)
        own = [{"Name": "name", "Values": [escaped]}]
        found = _find(cloud, OWN, Owners=["self"], Filters=own)
    if not found:
        raise ConfigurationError(
            f"there is no image {name} in {cloud.region}",
            remedy="See pestfleet capacity images; an image of another region must be copied.",
        )
    image = max(found, key=lambda image: image.created)
    if image.architecture and image.architecture != architecture:
        raise ConfigurationError(
            f"the image {image.id} is for {image.architecture}, and that type of machine is "
            f"{architecture}",
            remedy="Choose another type with --instances, or another --image.",
        )
    if image.windows:
        raise ConfigurationError(
            f"the image {image.id} is one of Windows, on which nothing here could end the machine",
            remedy="Choose an image of Linux.",
        )
    return image


def _find(cloud: Cloud, whose: str, **wanted: Any) -> list[MachineImage]:
    return [
        _read(image, whose)
        for image in cloud.find_all("ec2", "describe_images", "Images", **wanted)
    ]


def _read(image: dict[str, Any], whose: str) -> MachineImage:
    disks = {
        mapping["DeviceName"]: int(mapping["Ebs"].get("VolumeSize") or 0)
        for mapping in image.get("BlockDeviceMappings") or ()
        if mapping.get("Ebs")
    }
    return MachineImage(
        id=image["ImageId"],
        name=image.get("Name") or "",
        architecture=image.get("Architecture") or "",
        created=image.get("CreationDate") or "",
        size=sum(disks.values()),
        root=image.get("RootDeviceName") or "",
        disks=disks,
        whose=AMAZON if image.get("ImageOwnerAlias") == "amazon" else whose,
        description=image.get("Description") or "",
        windows=str(image.get("Platform") or "").lower() == "windows",
    )
