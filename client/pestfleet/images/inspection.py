"""What the checks of an image share: the case's files, what the image has, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pestfleet.bundle import RunFile
from pestfleet.checks.problem import Problems
from pestfleet.control.model import Place
from pestfleet.images.contents import ImageContents
from pestfleet.settings import ImageSettings


@dataclass(frozen=True, slots=True)
class Use:
    """A file of the case that the model starts or loads. `sure`: by a command, not by a mention."""

    file: RunFile
    place: Place
    sure: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """`contents`: what the image has, None where there is none yet. `whole`: with the packages
    of `[image] apt` and `pip`; without them, what is missing may come with these. `told`: places
    where the checks of the case have found an error: one mistake is told once.
    """

    files: Mapping[str, RunFile]
    problems: Problems
    image: ImageSettings
    contents: ImageContents | None
    whole: bool = True
    told: frozenset[Place] = frozenset()

    def report(self, place: Place, message: str, remedy: str, *, sure: bool = True) -> None:
        """An error; a warning where the file may not be used at all."""
        if place not in self.told:
            (self.problems.error if sure else self.problems.warning)(place, message, remedy)

    def report_lack(self, place: Place, message: str, package: str, *, sure: bool = True) -> None:
        """The image lacks something that is in this Debian package ("": not known which)."""
        promised = [name.split(":")[0].split("=")[0].split("/")[0] for name in self.image.apt]
        if not self.whole and package in promised:
            return
        own = self.image.dockerfile
        table = "in pestfleet.toml, [image] apt"
        if not self.whole:
            remedy = "Unless what is installed before the case brings it: the build tells."
            self.report(place, message, remedy, sure=False)
        elif own:
            remedy = f"Let {own} install {package or 'it'}."
            self.report(place, message, remedy, sure=sure)
        elif package:
            remedy = f'Debian has it in {package}; name that {table} = ["{package}"].'
            self.report(place, message, remedy, sure=sure)
        else:
            remedy = f'Put it into the case folder, or name its Debian package {table} = ["…"].'
            self.report(place, message, remedy, sure=sure)
