"""The files through which a run gives values to the model and gets values from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pestfleet_worker.errors import CaseError
from pestfleet_worker.instructions import InstructionError, Instructions
from pestfleet_worker.messages import CaseSpec
from pestfleet_worker.numbers import DecimalPoint, Precision
from pestfleet_worker.templates import BoundTemplate, Template


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A file that each run writes. `name` is relative to the case, `path` in the slot."""

    template: BoundTemplate
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A file that each run reads.

    `order`: index in the observation vector of each value, in the order of the instructions.
    """

    instructions: Instructions
    name: str
    path: Path
    order: tuple[int, ...]


def bind_inputs(spec: CaseSpec, *, source: Path, directory: Path) -> list[ModelInput]:
    """Compile the templates of the case in `source` for runs in `directory`.

    Raises `CaseError`.
    """
    templates = [Template.parse(source / pair.pest) for pair in spec.templates]
    widths: dict[str, int] = {}
    for template in templates:
        for name, width in template.widths.items():
            widths[name] = min(width, widths.get(name, width))
    return [
        ModelInput(
            template.bind(
                spec.parameters,
                precision=cast(Precision, spec.precision),
                decimal_point=cast(DecimalPoint, spec.decimal_point),
                widths=widths,
            ),
            pair.model,
            directory / pair.model,
        )
        for template, pair in zip(templates, spec.templates, strict=True)
    ]


def bind_outputs(spec: CaseSpec, *, source: Path, directory: Path) -> list[ModelOutput]:
    """Compile the instruction files; each observation must be in one of them, once.

    Raises `CaseError`.
    """
    places = {name: index for index, name in enumerate(spec.observations)}
    read_by: dict[str, Instructions] = {}
    outputs: list[ModelOutput] = []
    for pair in spec.instructions:
        instructions = Instructions.parse(source / pair.pest)
        for name in instructions.names:
            if name not in places:
                raise InstructionError(
                    f"observation {name} is not in the control file",
                    file=instructions.file,
                    line=instructions.line_of(name),
                    remedy="Add it to * observation data, or read it as dum.",
                )
            if name in read_by:
                other = read_by[name]
                raise InstructionError(
                    f"observation {name} is read twice, "
                    f"first in {other.file}:{other.line_of(name)}",
                    file=instructions.file,
                    line=instructions.line_of(name),
                    remedy="Give each observation a name of its own.",
                )
            read_by[name] = instructions
        order = tuple(places[name] for name in instructions.names)
        outputs.append(ModelOutput(instructions, pair.model, directory / pair.model, order))
    missing = [name for name in places if name not in read_by]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CaseError(
            f"no instruction file reads observation {missing[0]}{more}",
            remedy="Read it in an instruction file, or remove it from * observation data.",
        )
    return outputs
