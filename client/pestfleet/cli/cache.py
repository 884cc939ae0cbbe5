"""`pestfleet cache`: what the run cache has, less of it, and whether it is sound."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import json_option
from pestfleet.cli.quantities import format_count, format_size, parse_size, parse_time
from pestfleet_worker.errors import ConfigurationError, RunsFailedError

if TYPE_CHECKING:
    from pestfleet.cache.rerun import Difference, Rerun
    from pestfleet.cache.runcache import RunCache
    from pestfleet.cache.shelf import Stored
    from pestfleet.cache.upkeep import CaseUse, Verified
    from pestfleet.case import Case

place_option = click.option(
    "--cache",
    "place",
    metavar="PLACE",
    envvar="PESTFLEET_CACHE",
    help="A folder, or s3://bucket/prefix.  [default: the user's own folder]",
)
case_option = click.option(
    "--case", metavar="CASE", help="Only this case: its digest's first digits, or its folder."
)


@click.group("cache", short_help="The run cache: list, show, prune, verify.")
def command() -> None:
    """What the run cache has. A run that is in it is never made again."""


@command.command("list", short_help="List the cases that have cached runs.")
@place_option
@json_option
def list_command(place: str | None, *, as_json: bool) -> None:
    """List the cases that have cached runs, the last used first."""
    from pestfleet.cache.upkeep import summarize_cases
    from pestfleet.cli.tables import make_console, make_table

    cache = _open(place)
    uses = summarize_cases(cache)
    if as_json:
        _print_json({"place": cache.place, "cases": [_use_to_dict(use) for use in uses]})
        return
    if not uses:
        click.echo(f"the run cache {cache.place} is empty")
        return
    table = make_table()
    for column in ("digest", "case", "runs", "size", "oldest use", "last use"):
        table.add_column(column, justify="right" if column in ("runs", "size") else "left")
    for use in uses:
        table.add_row(
            use.case[:12],
            use.name,
            f"{use.entries:,}",
            format_size(use.size),
            _format_time(use.oldest),
            _format_time(use.newest),
        )
    make_console().print(table)
    runs, size = sum(use.entries for use in uses), sum(use.size for use in uses)
    click.echo(f"{format_count(runs, 'run')}, {format_size(size)}, in {cache.place}")


@command.command("show", short_help="Show a case's share, or one run.")
@click.argument("name", metavar="DIGEST|KEY")
@place_option
@json_option
@click.option("--rows", default=20, show_default=True, help="Values to show of each vector.")
def show_command(name: str, place: str | None, *, as_json: bool, rows: int) -> None:
    """Show the case or the run whose DIGEST or KEY begins like this: 6 digits at least."""
    from pestfleet.cache.upkeep import find_cases, find_entries, list_records, summarize_cases

    cache = _open(place)
    prefix = _check_prefix(name)
    cases = find_cases(cache, prefix)
    if cases:
        case = _choose(cases, prefix, "case")
        use = next(iter(summarize_cases(cache, case)), None)
        if use is not None:
            first = next(list_records(cache, case), None)
            report = _use_to_dict(use) | (dict(first[1].about) if first else {})
            _print_report(report, as_json=as_json)
            return
    items = {item.key.hash: item for item in find_entries(cache, prefix)}
    if not items:
        raise ConfigurationError(
            f"the run cache {cache.place} has neither a case nor a run {name}",
            remedy="List what it has: pestfleet cache list",
        )
    _show_entry(cache, items[_choose(sorted(items), prefix, "run")], as_json=as_json, rows=rows)


@command.command("prune", short_help="Remove old runs, or those of a case.")
@click.option(
    "--older-than",
    type=parse_time,
    metavar="TIME",
    help="Runs that were not used for so long, such as 30d.",
)
@click.option(
    "--max-size",
    type=parse_size,
    metavar="SIZE",
    help="The oldest-used runs, until so much is left, such as 5GB.",
)
@case_option
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@place_option
@json_option
def prune_command(
    older_than: float | None,
    max_size: int | None,
    case: str | None,
    place: str | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove cached runs that have expired, and what the options ask for.

    Damaged entries that were set aside go too, and what writers left that were killed. --case
    alone removes all runs of that case; with other options it limits them to that case.
    """
    from pestfleet.cache.upkeep import prune_cache

    cache = _open(place)
    pruned = prune_cache(
        cache,
        older_than=older_than,
        max_bytes=max_size,
        case=_find_case(cache, case) if case else None,
        dry_run=dry_run,
    )
    left = pruned.leftovers
    if as_json:
        _print_json(
            {
                "dry_run": dry_run,
                "removed": {"runs": pruned.removed, "bytes": pruned.removed_size},
                "leftovers": {"files": left.files, "bytes": left.size},
                "kept": {"runs": pruned.kept, "bytes": pruned.kept_size},
            }
        )
        return
    would = "would be " if dry_run else ""
    click.echo(
        f"{format_count(pruned.removed, 'run')} {would}removed, {format_size(pruned.removed_size)}"
    )
    if left.files:
        click.echo(
            f"{format_count(left.files, 'leftover file')} {would}removed, {format_size(left.size)}"
        )
    click.echo(f"{format_count(pruned.kept, 'run')} kept, {format_size(pruned.kept_size)}")


@command.command("verify", short_help="Verify checksums; make some runs again.")
@case_option
@click.option(
    "--rerun", type=click.IntRange(1), metavar="N", help="Make N runs of --case FOLDER again."
)
@click.option("--time-limit", type=float, default=0.0, metavar="SECONDS", help="Of such a run.")
@click.option(
    "--scratch", type=click.Path(file_okay=False, path_type=Path), help="Folder for their slot."
)
@place_option
@json_option
def verify_command(
    case: str | None,
    rerun: int | None,
    place: str | None,
    *,
    time_limit: float,
    scratch: Path | None,
    as_json: bool,
) -> None:
    """Verify the checksum of every entry; damaged ones are set aside.

    --rerun makes some cached runs again, on this machine, and compares bit by bit: it tells
    whether the model is deterministic. Exit code 5 when an entry is damaged or a run differs.
    """
    from pestfleet.cache.rerun import describe_platform, rerun_cached_runs
    from pestfleet.cache.upkeep import verify_cache
    from pestfleet_worker.messages import Limits

    cache = _open(place)
    opened = _open_case(case) if rerun else None
    digest = opened.digest if opened else _find_case(cache, case) if case else None
    verified = verify_cache(cache, digest)
    report: dict[str, Any] = {
        "place": cache.place,
        "entries": verified.entries,
        "bytes": verified.size,
        "expired": verified.expired,
        "damaged": verified.damaged_entries,
        "damage": verified.damaged,
    }
    if not as_json:
        _print_verified(cache, verified)
    found = None
    if rerun and opened:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        found = rerun_cached_runs(
            cache, opened, runs=rerun, limits=Limits(time_limit), scratch=scratch
        )
        report["rerun"] = _rerun_to_dict(found)
        if not as_json:
            _print_rerun(found, describe_platform())
    if as_json:
        _print_json(report)
    if verified.damaged_entries or (found is not None and not found.sound):
        click.get_current_context().exit(RunsFailedError.exit_code)


def _open(place: str | None) -> RunCache:
    from pestfleet.cache.places import open_cache

    return open_cache(place or "")


def _open_case(case: str | None) -> Case:
    from pestfleet.case import Case

    if case is None or not Path(case).exists():
        raise ConfigurationError(
            "--rerun needs the case's files" if case is None else f"{case}: there is no such case",
            remedy="Name the case's folder or control file with --case.",
        )
    return Case.read(case)


def _find_case(cache: RunCache, case: str) -> str:
    """The digest of a case that was named by its folder, or by the digest's first digits."""
    from pestfleet.cache.upkeep import find_cases

    if Path(case).exists():
        return _open_case(case).digest
    prefix = _check_prefix(case)
    found = find_cases(cache, prefix)
    if not found:
        raise ConfigurationError(
            f"the run cache {cache.place} has no case {case}",
            remedy="List what it has: pestfleet cache list",
        )
    return _choose(found, prefix, "case")


def _check_prefix(name: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{6,64}", name):
        raise ConfigurationError(
            f"{name!r} is neither a folder nor the beginning of a digest or key",
            remedy="Give 6 to 64 hexadecimal digits; pestfleet cache list has them.",
        )
    return name.lower()


def _choose(names: list[str], prefix: str, what: str) -> str:
    if len(names) > 1 and prefix not in names:
        raise ConfigurationError(
            f"more than one {what} begins with {prefix}: {', '.join(n[:16] for n in names[:5])}",
            remedy="Give more digits.",
        )
    return prefix if prefix in names else names[0]


def _show_entry(cache: RunCache, item: Stored, *, as_json: bool, rows: int) -> None:
    from pestfleet.cache.entries import RunRecord
    from pestfleet.cache.upkeep import peek_entry
    from pestfleet_worker.messages import unpack_vector

    entry = peek_entry(cache, item)
    if entry is None:
        raise ConfigurationError(
            f"the entry {item.key.hash} is damaged",
            remedy="Set all such entries aside with: pestfleet cache verify",
        )
    report: dict[str, Any] = {
        "key": item.key.hash,
        "digest": item.key.case,
        "bytes": item.size,
        "written": _format_time(entry.created),
        "last_use": _format_time(item.used),
        "expires": _format_time(entry.expires) if entry.expires else "never",
    }
    if isinstance(entry.value, RunRecord):
        report |= dict(entry.value.about) | {"seconds": entry.value.seconds}
        for name in ("parameters", "observations"):
            values = unpack_vector(getattr(entry.value, name)).tolist()
            report[name] = values if as_json else _shorten(values, rows)
    else:
        report["type"] = type(entry.value).__name__
    _print_report(report, as_json=as_json)


def _shorten(values: list[float], rows: int) -> str:
    shown = " ".join(repr(value) for value in values[:rows])
    return f"{shown} … ({len(values):,})" if len(values) > rows else shown


def _print_verified(cache: RunCache, verified: Verified) -> None:
    click.echo(
        f"{format_count(verified.entries, 'run')}, {format_size(verified.size)}, in {cache.place}: "
        f"{verified.damaged_entries:,} damaged, {verified.expired:,} expired"
    )
    for name, why in list(verified.damaged.items())[:10]:
        click.echo(f"  {name}: {why}; it was set aside, its run will be made again")


def _print_rerun(found: Rerun, here: str) -> None:
    click.echo(f"{found.made:,} of {found.cached:,} cached runs of the case were made again")
    for name, why in found.failed.items():
        click.echo(f"  {name[:16]}: failed now: {why}")
    for difference in found.differences:
        click.echo(f"  {difference.hash[:16]}: {_describe_difference(difference, here)}")
    if found.sound:
        click.echo("all gave the same bits: the model is deterministic, as far as these tell")
        return
    if found.deterministic is False:
        click.echo(
            "the model is not deterministic: two runs with the same parameters differ. Cached "
            "runs repeat the first result; use --no-cache where you want it drawn anew."
        )
    elif found.differences:
        click.echo(
            "the model gives the same each time here, but not what is cached: another machine, "
            "library or compiler made those. Remove them with: pestfleet cache prune --case CASE"
        )


def _describe_difference(difference: Difference, here: str) -> str:
    where = "" if difference.platform in ("", here) else f", made on {difference.platform}"
    return (
        f"{format_count(difference.count, 'observation')} different, most "
        f"{difference.observation}: cached {difference.cached!r}, now {difference.again!r}, "
        f"relative {difference.relative:.2g}{where}"
    )


def _rerun_to_dict(found: Rerun) -> dict[str, Any]:
    fields = ("hash", "count", "observation", "cached", "again", "relative", "platform")
    return {
        "cached": found.cached,
        "made": found.made,
        "same": found.same,
        "deterministic": found.deterministic,
        "failed": found.failed,
        "differences": [
            {name: getattr(item, name) for name in (*fields, "repeatable")}
            for item in found.differences
        ],
    }


def _use_to_dict(use: CaseUse) -> dict[str, Any]:
    return {
        "digest": use.case,
        "name": use.name,
        "runs": use.entries,
        "bytes": use.size,
        "oldest_use": _format_time(use.oldest),
        "last_use": _format_time(use.newest),
    }


def _print_report(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    for name, value in report.items():
        text = "; ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{name.replace('_', ' '):<13}{text}")


def _print_json(value: Any) -> None:
    from pestfleet.progress import dump_json

    click.echo(dump_json(value))


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
