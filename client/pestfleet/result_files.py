"""Data frames from the files that engines write: our own, PEST++, PEST, beoPEST and PEST_HP.

The embedded engines write what PEST++ writes, so that one reader does for both. Names of files:
PEST++ users' manual, the section "Output files" of each program; PEST manual part I, chapter 5.
Every function takes `home`, the folder with these files (`find_home`), and leaves out a table
whose files are not there (yet).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.control.model import ControlFile
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    import pandas

Tables = dict[str, "pandas.DataFrame"]

_FAILED_VALUE = -1e100  # observation of a failed run in the output of a sweep
_BINARY = (".jcb", ".bin")  # ensembles with ies_save_binary or save_dense
_FORECASTS = 3  # observations without weight, up to which each of them counts as a forecast


@dataclass(frozen=True, slots=True)
class Home:
    """A folder in which an engine writes, without what it has from the case.

    A modeller's folder often has results of earlier days, and external engines run in a copy of it.
    """

    folder: Path
    case: Path

    def find(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() and not self._is_from_case(path) else None

    def list(self, pattern: str) -> list[Path]:
        return [p for p in sorted(self.folder.glob(pattern)) if self.find(p.name)]

    def _is_from_case(self, path: Path) -> bool:
        try:
            old = (self.case / path.name).stat()
        except OSError:
            return False
        new = path.stat()
        return (old.st_mtime_ns, old.st_size) == (new.st_mtime_ns, new.st_size)


def find_home(results: Path, case: Path, name: str) -> Home:
    """`results`, or a folder directly below it, whichever has the newest files of the engine.

    External engines write below, where they run; what they leave goes to `results` at the end.
    `case`: the session's copy of the case folder; `name`: the case's name.
    """
    best, newest = Home(results, case), 0.0
    for folder in (results, *sorted(path for path in results.glob("*/") if path.is_dir())):
        home = Home(folder, case)
        files = [*home.list(f"{glob.escape(name)}.*"), *home.list("sweep_out*")]
        times = [path.stat().st_mtime for path in files if path.suffix != ".pst"]
        if times and max(times) > newest:
            best, newest = home, max(times)
    return best


def read_fit(home: Home, control: ControlFile) -> Tables:
    """`parameters` and `observations` from `.par`, `.rei` and `.par.usum.csv`.

    Where an engine has only those of iterations, `<case>.<iteration>.par`, the last one is taken.
    """
    import pandas

    from pestfleet.files.parameters import read_par
    from pestfleet.files.residuals import read_residuals

    tables: Tables = {}
    par, rei = (_find_last(home, control.name, suffix) for suffix in (".par", ".rei"))
    summary = home.find(f"{control.name}.par.usum.csv")
    if par is not None:
        parameters = _list_parameters(control)
        values = {entry.name: entry.value for entry in read_par(par).values}
        parameters["value"] = parameters["name"].map(values)
        parameters["lower95"] = parameters["upper95"] = float("nan")
        if summary is not None:
            _add_limits(parameters, summary)
        tables["parameters"] = _arrange(parameters)
    if rei is not None:
        rows = [
            (r.name, r.group, r.measured, r.modelled, r.residual, r.weight)
            for r in read_residuals(rei)
        ]
        columns = ["name", "group", "measured", "modelled", "residual", "weight"]
        tables["observations"] = pandas.DataFrame(rows, columns=columns)
    return tables


def read_ensembles(home: Home, control: ControlFile) -> Tables:
    """Ensembles of the first and the last iteration, their quantiles, forecasts, and phi."""
    tables: Tables = {}
    for what, suffix in (("parameters", "par"), ("observations", "obs")):
        ensembles = _find_ensembles(home, control.name, suffix)
        if ensembles:
            tables[f"prior_{what}"] = _read_ensemble(ensembles[0])
            tables[f"posterior_{what}"] = _read_ensemble(ensembles[-1])
    if "posterior_parameters" in tables:
        parameters = _list_parameters(control)
        _add_quantiles(parameters, tables["posterior_parameters"], "value")
        tables["parameters"] = _arrange(parameters)
    if "posterior_observations" in tables:
        observations = _list_observations(control)
        _add_quantiles(observations, tables["posterior_observations"], "modelled")
        observations["residual"] = observations["measured"] - observations["modelled"]
        names = ["name", "group", "measured", "modelled", "residual", "weight", "noise"]
        tables["observations"] = observations[[*names, "lower95", "upper95"]]
        tables |= _summarize_forecasts(control, tables)
    phi = home.find(f"{control.name}.phi.actual.csv")
    if phi is not None:
        statistics = ["total_runs", "mean", "standard_deviation", "min", "max"]
        tables["phi"] = _read_csv(phi).drop(columns=statistics, errors="ignore")
    return tables


def read_sweep(home: Home, control: ControlFile, names: list[str]) -> Tables:
    """`sweep`: the first of the files `names` that is there."""
    path = next((path for name in names if (path := home.find(name))), None)
    if path is None or path.suffix.lower() in _BINARY:
        return {}
    table = _read_csv(path, index=None)
    observations = [o.name for o in control.observations]
    # A chunk that is being written now may end in the middle of a line.
    table = table[table[observations[-1]].notna()]
    table[observations] = table[observations].mask(table[observations] == _FAILED_VALUE)
    return {"sweep": table.reset_index(drop=True)}


def read_sensitivities(home: Home, control: ControlFile) -> Tables:
    """`sensitivities` of phi: by the method of Morris (`.msn`), or of Sobol (`.sobol.*.csv`).

    Morris: name, samples, mean, mean_absolute, standard_deviation. Sobol: name, first_order,
    total. The most sensitive parameter first.
    """
    import pandas

    morris = home.find(f"{control.name}.msn")
    first, total = (home.find(f"{control.name}.sobol.{which}.csv") for which in ("si", "sti"))
    if morris is not None:
        table = _read_csv(morris, index=None)
        table = table.rename(columns=str.strip).set_axis(
            ["name", "samples", "mean", "mean_absolute", "standard_deviation"], axis="columns"
        )
        key = "mean_absolute"
    elif first is not None and total is not None:
        columns = {"first_order": _read_csv(first), "total": _read_csv(total)}
        table = pandas.DataFrame({name: values.loc["phi"] for name, values in columns.items()})
        table = table.rename_axis("name").reset_index()
        key = "total"
    else:
        return {}
    table["name"] = table["name"].str.strip().str.lower()
    ranked = table.sort_values(key, ascending=False, kind="stable")
    return {"sensitivities": ranked.reset_index(drop=True)}


def read_phi_history(home: Home, control: ControlFile) -> pandas.DataFrame | None:
    """Columns number and phi, from the engine's own table by iteration; None where it has none."""
    import pandas

    for name, column in ((".phi.actual.csv", "mean"), (".iobj", "total_phi")):
        path = home.find(f"{control.name}{name}")
        if path is not None:
            table = _read_csv(path)
            if column not in table:
                continue  # pestpp-glm that restarted goes on in the file without a header
            return pandas.DataFrame({"number": table.index, "phi": table[column].to_numpy()})
    return None


def _list_parameters(control: ControlFile) -> pandas.DataFrame:
    import pandas

    rows = [(p.name, p.group, p.transform, p.initial, p.lower, p.upper) for p in control.parameters]
    columns = ["name", "group", "transform", "initial", "lower_bound", "upper_bound"]
    return pandas.DataFrame(rows, columns=columns)


def _list_observations(control: ControlFile) -> pandas.DataFrame:
    """`noise`: its standard deviation; NaN for observations without weight."""
    import pandas

    rows = [(o.name, o.group, o.value, o.weight) for o in control.observations]
    table = pandas.DataFrame(rows, columns=["name", "group", "measured", "weight"])
    table["noise"] = (1.0 / table["weight"]).where(table["weight"] > 0)
    given = table["name"].map(control.observation_data.get("standard_deviation", {}))
    given = pandas.to_numeric(given, errors="coerce")
    table["noise"] = table["noise"].mask(given.notna() & table["noise"].notna(), given)
    return table


def _arrange(parameters: pandas.DataFrame) -> pandas.DataFrame:
    first = ["name", "group", "transform", "initial", "value", "lower95", "upper95"]
    return parameters[[*first, "lower_bound", "upper_bound"]]


def _add_limits(parameters: pandas.DataFrame, path: Path) -> None:
    """95 % limits from `<case>.par.usum.csv`, where log-transformed parameters are log10."""
    import numpy as np

    table = _read_csv(path)
    table.index = table.index.str.lower()
    log = (parameters["transform"] == "log").to_numpy()
    for ours, theirs in (("lower95", "post_lower_bound"), ("upper95", "post_upper_bound")):
        limits = parameters["name"].map(table[theirs]).to_numpy(dtype=float)
        with np.errstate(over="ignore"):
            limits[log] = np.power(10.0, limits[log])
        parameters[ours] = limits


def _add_quantiles(
    table: pandas.DataFrame, ensemble: pandas.DataFrame, median: str, prefix: str = ""
) -> None:
    quantiles = ensemble.quantile([0.5, 0.025, 0.975])
    names = (median, f"{prefix}lower95", f"{prefix}upper95")
    for column, (_, values) in zip(names, quantiles.iterrows(), strict=True):
        table[column] = table["name"].map(values)


def _summarize_forecasts(control: ControlFile, tables: Tables) -> Tables:
    """`forecasts`: those that the control file names; else observations without weight, if few."""
    observations = tables["observations"]
    text = next((control.options[n] for n in ("forecasts", "predictions") if n in control.options),
                "")  # fmt: skip
    wanted = text.lower().replace(",", " ").split()
    if not wanted:
        wanted = list(observations.loc[observations["weight"] == 0, "name"])
        if len(wanted) > _FORECASTS:
            return {}
    chosen = observations[observations["name"].isin(wanted)]
    if chosen.empty:
        return {}
    table = chosen[["name", "group", "measured"]].rename(columns={"measured": "written"})
    for which in ("prior", "posterior"):
        ensemble = tables[f"{which}_observations"]
        _add_quantiles(table, ensemble[list(table["name"])], f"{which}_median", f"{which}_")
    return {"forecasts": table.reset_index(drop=True)}


def _find_ensembles(home: Home, case: str, suffix: str) -> list[Path]:
    """`<case>.<iteration>.<suffix>.csv`, or binary, by iteration."""
    found: dict[int, Path] = {}
    for kind in (*_BINARY, ".csv"):  # the CSV has the last word
        for path in home.list(f"*.{suffix}{kind}"):
            label = path.name.removesuffix(f".{suffix}{kind}").removeprefix(f"{case}.")
            if label.isdecimal() or label == "base":
                found[int(label) if label.isdecimal() else 0] = path
    return [found[number] for number in sorted(found)]


def _find_last(home: Home, case: str, suffix: str) -> Path | None:
    final = home.find(f"{case}{suffix}")
    if final is not None:
        return final
    numbered = {}
    for path in home.list(f"*{suffix}"):
        label = path.name.removesuffix(suffix).removeprefix(f"{case}.")
        if label.isdecimal():
            numbered[int(label)] = path
    return numbered[max(numbered)] if numbered else None


def _read_ensemble(path: Path) -> pandas.DataFrame:
    import pandas

    if path.suffix.lower() == ".csv":
        table = _read_csv(path)
        table.columns = table.columns.str.strip().str.lower()
        return table
    from pestfleet.files.ensembles import read_ensemble

    ensemble = read_ensemble(path)
    index = pandas.Index(ensemble.realizations, name="real_name")
    return pandas.DataFrame(ensemble.values, index=index, columns=list(ensemble.columns))


def _read_csv(path: Path, *, index: int | None = 0) -> pandas.DataFrame:
    import pandas

    try:
        return pandas.read_csv(path, index_col=index, float_precision="round_trip")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise SessionError(
            f"{path} cannot be read: {error}",
            remedy="While the session runs, try again; else resume it: the file is made again.",
        ) from error
