"""What `pestfleet cost` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pestfleet.cli.quantities import format_count
from pestfleet.cli.tables import make_console, make_table
from pestfleet.narration import format_duration

if TYPE_CHECKING:
    from pestfleet.costs.plan import CostPlan, Range
    from pestfleet.costs.report import CostReport


def format_range(values: Range | None) -> str:
    """`1.20`, `1.20 to 3.00`; "" for what is not known."""
    if values is None:
        return ""
    least, most = _format_dollars(values.least), _format_dollars(values.most)
    return least if least == most else f"{least} to {most}"


def _format_dollars(value: float) -> str:
    """Cents, or parts of a cent of what is less than ten."""
    if 0 < value < 0.1:
        return f"{value:.3f}" if value >= 0.001 else "<0.001"
    return f"{value:,.2f}"


def _format_hours(values: Range) -> str:
    least, most = format_duration(3600 * values.least), format_duration(3600 * values.most)
    return least if least == most else f"{least} to {most}"


def print_plan(plan: CostPlan) -> None:
    """What a session will cost, thing by thing."""
    console = make_console()
    table = make_table("What costs, in US dollars")
    table.add_column("for")
    table.add_column("what")
    for column in ("units", "a unit", "an hour", "session"):
        table.add_column(column, justify="right")
    for line in plan.lines:
        charge = line.charge
        session = format_range(line.session) if line.session is None or line.session.most else "0"
        number = f" × {_format_number(plan.workers)}" if charge.role == "worker" else ""
        table.add_row(
            f"{charge.role or 'session'}{number}",
            f"{charge.why} ({charge.item})",
            f"{charge.amount:.4g}",
            "unknown" if line.price is None else f"{line.price:.6g}",
            format_range(line.hourly) if line.hourly.most else "",
            "unknown" if line.price is None else session,
        )
    console.print(table)
    lines = [f"prices    {plan.source} ({plan.region})"]
    if plan.runs is not None:
        least, most = plan.runs.range
        number = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines.append(f"runs      {number}: {plan.runs.formula} ({plan.runs.source})")
    else:
        lines.append("runs      nobody knows how many this engine needs; --runs N says it")
    if plan.run_seconds is not None:
        lines.append(f"a run     {format_duration(plan.run_seconds)}")
    else:
        lines.append("a run     of unknown length; --run makes one, --run-seconds says it")
    if plan.hours is not None and plan.worker_hours is not None:
        together = _format_hours(plan.worker_hours)
        lines.append(f"time      {_format_hours(plan.hours)}; of all workers together {together}")
    lines.append(f"an hour   {format_range(plan.hourly)} USD with "
                 f"{_format_number(plan.workers)} workers")  # fmt: skip
    total = format_range(plan.total) or "unknown: it has no --max-hours, and no length is known"
    lines.append(f"session   {total} USD" if plan.total is not None else f"session   {total}")
    if plan.ends:
        lines.append(f"          it ends {plan.ends}")
    if plan.budget:
        lines.append(f"          its budget is {plan.budget:,.2f} USD: then it ends")
    lines.append(
        f"after it  {_format_dollars(plan.monthly)} USD a month, until its results are removed "
        "(pestfleet down --discard-results)"
    )
    if plan.unknown:
        lines.append(
            f"missing   no price is known of {', '.join(plan.unknown)}: it is not in the sums"
        )
    lines += ["by use, not in the sums:", *(f"  {text}" for text in plan.by_use)]
    lines += ["free:", *(f"  {text}" for text in plan.free)]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _format_number(values: Range) -> str:
    least, most = round(values.least), round(values.most)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


# Of `make_session_prices`.
_TITLES = {"once": "logs, taken as 0.1 GB", "late": "names in the VPC, after 12 hours"}


def print_report(name: str, report: CostReport, *, running: bool) -> None:
    """What a session has cost so far."""
    console = make_console()
    if report.paid:
        table = make_table(f"Session {name}, US dollars{' so far' if running else ''}")
        table.add_column("for")
        table.add_column("USD", justify="right")
        for item, dollars in report.dollars.items():
            table.add_row(_TITLES.get(item, item.replace("/", ": ")), _format_dollars(dollars))
        table.add_row("together", _format_dollars(report.total), style="bold")
        console.print(table)
    ratio = "" if report.ratio is None else f"; ratio {report.ratio:.2f}"
    workers, runs = format_count(report.workers, "worker"), format_count(report.runs, "run")
    lines = [
        f"paid worker time  {format_duration(report.worker_seconds)} of {workers}",
        f"model time        {format_duration(report.model_seconds)} of {runs}",
        f"paid slots        {format_duration(report.slot_seconds)}{ratio}",
    ]
    if report.paid:
        lines.append("By the prices at its launch; Amazon's bill has taxes and discounts, too.")
    else:
        lines.append(f"Session {name} has no prices: it costs nothing that pestfleet knows of.")
    console.print("\n".join(lines), highlight=False)
