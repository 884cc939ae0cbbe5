"""PEST template files: model inputs with spaces for parameter values.

The format is that of the PEST manual, part I, section 2.2 (and the PEST++ manual, section 2.3):
the first line is `ptf X`; two markers `X` and all between them are the space of the parameter
that is named there. The number takes as many significant digits as fit (variables PRECIS and
DPOINT of the control file), right-justified. A parameter with several spaces is written the same
way in all of them, as fits the narrowest, so that the model never sees two values of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pestfleet_worker.errors import CaseError
from pestfleet_worker.numbers import (
    DecimalPoint,
    NumberError,
    Precision,
    fit_quickly,
    format_number,
)


class TemplateError(CaseError):
    """A template file that breaks PEST's rules. `problem` is the message without the place.

    `more`: errors of later lines of the same file.
    """

    def __init__(self, problem: str, *, file: Path, line: int = 0, remedy: str = "") -> None:
        place = f"{file}:{line}" if line else str(file)
        super().__init__(f"{place}: {problem}", remedy=remedy)
        self.problem = problem
        self.file = file
        self.line = line
        self.more: tuple[TemplateError, ...] = ()


class FieldError(TemplateError):
    """A value that cannot be written into the space of its parameter."""

    def __init__(
        self, problem: str, *, file: Path, line: int, name: str, width: int, remedy: str = ""
    ) -> None:
        super().__init__(problem, file=file, line=line, remedy=remedy)
        self.name = name
        self.width = width


@dataclass(frozen=True, slots=True)
class Field:
    """The space of a parameter: `line` and `column` of its first marker count from 1."""

    name: str
    line: int
    column: int
    width: int


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `literals[i]` stands before `fields[i]`; one literal more than fields."""

    file: Path
    marker: str
    fields: tuple[Field, ...]
    literals: tuple[str, ...]

    @classmethod
    def parse(cls, path: Path) -> Template:
        """Read a template file. Raises `TemplateError` for the first line that is wrong."""
        try:
            # Each byte is one character of latin-1, so that any encoding comes out as it went in.
            text = path.read_bytes().decode("latin-1")
        except FileNotFoundError:
            raise TemplateError(
                "template file not found", file=path, remedy="Check its name in the control file."
            ) from None
        except OSError as error:
            raise TemplateError(f"cannot be read: {error.strerror}", file=path) from error
        head, _, body = text.partition("\n")
        marker = _read_marker(head, path)
        fields: list[Field] = []
        literals: list[str] = []
        errors: list[TemplateError] = []
        rest = ""
        for number, line in enumerate(body.split("\n"), start=2):
            if number > 2:
                rest += "\n"
            if marker not in line:
                rest += line
                continue
            pieces = line.split(marker)
            if len(pieces) % 2 == 0:
                problem = (
                    f"the marker {marker} opens a parameter space that is not closed on this line"
                )
                remedy = f"Markers come in pairs; {marker} must not be used for anything else."
                errors.append(TemplateError(problem, file=path, line=number, remedy=remedy))
                continue
            column = 1
            for index, piece in enumerate(pieces):
                if index % 2 == 0:
                    rest += piece
                    column += len(piece)
                    continue
                width = len(piece) + 2
                try:
                    name = _read_name(piece, path, number)
                except TemplateError as error:
                    errors.append(error)
                    break  # the markers of this line may be paired wrongly
                fields.append(Field(name, number, column, width))
                literals.append(rest)
                rest = ""
                column += width
        if errors:
            errors[0].more = tuple(errors[1:])
            raise errors[0]
        literals.append(rest)
        return cls(path, marker, tuple(fields), tuple(literals))

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters of this template, lower case, each once, in order of first occurrence."""
        return tuple(dict.fromkeys(field.name for field in self.fields))

    @property
    def widths(self) -> dict[str, int]:
        """Width of the narrowest space of each parameter, in characters."""
        widths: dict[str, int] = {}
        for field in self.fields:
            widths[field.name] = min(field.width, widths.get(field.name, field.width))
        return widths

    def bind(
        self,
        names: Sequence[str],
        *,
        precision: Precision = "double",
        decimal_point: DecimalPoint = "point",
        widths: Mapping[str, int] | None = None,
    ) -> BoundTemplate:
        """Fix the order of the values that `BoundTemplate.render` gets.

        `widths`: narrowest space of a parameter over all templates of the case, if the case
        has several. Raises `TemplateError` for a parameter that is not among `names`.
        """
        order = {name.lower(): index for index, name in enumerate(names)}
        narrowest = self.widths
        if widths is not None:
            narrowest = {name: min(n, widths.get(name, n)) for name, n in narrowest.items()}
        for field in self.fields:
            if field.name not in order:
                raise TemplateError(
                    f"parameter {field.name} is not in the control file",
                    file=self.file,
                    line=field.line,
                    remedy="Add it to * parameter data, or correct its name.",
                )
        slots = {name: slot for slot, name in enumerate(narrowest)}
        return BoundTemplate(
            template=self,
            parameters=tuple((order[name], width) for name, width in narrowest.items()),
            places=tuple((slots[field.name], field.width) for field in self.fields),
            precision=precision,
            decimal_point=decimal_point,
        )

    def render(self, values: Mapping[str, float]) -> bytes:
        """The model input with `values`, in double precision. Raises `TemplateError`."""
        lowered = {name.lower(): value for name, value in values.items()}
        return self.bind(tuple(lowered)).render(tuple(lowered.values()))


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """A template that takes its values from a vector in a fixed order.

    `parameters`: (index in the vector, narrowest width) of each parameter;
    `places`: (index in `parameters`, width) of each field.
    """

    template: Template
    parameters: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int], ...]
    precision: Precision
    decimal_point: DecimalPoint

    def render(self, values: Sequence[float]) -> bytes:
        """The model input with these values.

        Raises `FieldError` for a value that is not finite or does not fit its space.
        """
        texts: list[str] = []
        double = self.precision == "double"
        pointed = double and self.decimal_point == "point"
        for slot, (index, width) in enumerate(self.parameters):
            value = values[index]
            # The shortest text that gives the same double back, if it fits and has a point.
            text = repr(value)
            if "." not in text or not double:
                text = ""
            elif len(text) > width:
                text = ""
                if pointed and width > 4 and value > 0:
                    text = fit_quickly(value, width, 17)
                elif pointed and width > 4 and value < 0:
                    text = fit_quickly(-value, width - 1, 17)
                    if text:
                        text = "-" + text
            if not text:
                try:
                    text = format_number(
                        value, width, precision=self.precision, decimal_point=self.decimal_point
                    )
                except NumberError as error:
                    raise self._blame(slot, width, error) from None
            texts.append(text)
        parts = [""] * (2 * len(self.places) + 1)
        parts[0::2] = self.template.literals
        parts[1::2] = [texts[slot].rjust(width) for slot, width in self.places]
        return "".join(parts).encode("latin-1")

    def _blame(self, slot: int, width: int, error: NumberError) -> FieldError:
        fields = [
            field
            for field, (owner, _) in zip(self.template.fields, self.places, strict=True)
            if owner == slot
        ]
        field = min(fields, key=lambda field: field.width)
        return FieldError(
            f"parameter {field.name}: {error}",
            file=self.template.file,
            line=field.line,
            name=field.name,
            width=width,
            remedy="Widen the parameter space in the template, or narrow the parameter's bounds.",
        )


def _read_marker(head: str, path: Path) -> str:
    """The marker out of the first line `ptf X`."""
    words = head.split()
    kind = words[0].lower() if words else ""
    if kind.startswith("ï»¿") or head.startswith(("ÿþ", "þÿ")):
        raise TemplateError(
            "the file begins with a byte order mark",
            file=path,
            line=1,
            remedy="Save it as plain text (ANSI, or UTF-8 without BOM).",
        )
    if kind == "jtf":
        raise TemplateError(
            "this is a JUPITER template file (jtf), not one of PEST",
            file=path,
            line=1,
            remedy="If it follows PEST's rules, write ptf in place of jtf.",
        )
    if kind != "ptf" or len(words) != 2 or len(words[1]) != 1:
        raise TemplateError(
            f"the first line must be ptf, a space and one marker character, not {head.strip()!r}",
            file=path,
            line=1,
            remedy="A template begins with a line such as: ptf ~",
        )
    marker = words[1]
    if marker.isascii() and marker.isalnum():
        raise TemplateError(
            f"a letter or digit ({marker}) cannot be the marker",
            file=path,
            line=1,
            remedy="Use a character that is nowhere else in the file, such as ~ or #.",
        )
    return marker


def _read_name(piece: str, path: Path, line: int) -> str:
    words = piece.split()
    if len(words) != 1:
        problem = (
            f"a parameter name must not have spaces: {piece.strip()!r}"
            if words
            else "a parameter space without a name"
        )
        raise TemplateError(
            problem,
            file=path,
            line=line,
            remedy="Between two markers stands one parameter name; check that markers pair up.",
        )
    return words[0].lower()
