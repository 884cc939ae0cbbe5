"""Settings: where each value comes from, and what is said about a wrong one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pestfleet.config import find_settings_file, read_configuration, read_settings, redact
from pestfleet.settings import EXPECTED, AmazonSettings, ImageSettings, Settings
from pestfleet_worker.errors import ConfigurationError
from source import ROOT

PASSWORD = "s3cret"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, below one that is empty too."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_settings(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "pestfleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_nothing() -> None:
    configuration = read_configuration()
    assert configuration.settings.engine == "glm"
    assert configuration.settings.workers == os.cpu_count()
    assert configuration.settings.sessions == Path("pestfleet-sessions")
    assert configuration.settings.broker_url == ""
    assert {origin for _, origin in configuration.describe().values()} == {"default"}


def test_command_line_beats_environment_beats_file_beats_default(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_settings(here, "workers = 3\nslots = 3\nthreads = 3\n")
    monkeypatch.setenv("PESTFLEET_WORKERS", "5")
    monkeypatch.setenv("PESTFLEET_SLOTS", "5")
    configuration = read_configuration(given={"workers": 7, "slots": None})
    settings = configuration.settings
    assert (settings.workers, settings.slots, settings.threads, settings.deliveries) == (7, 5, 3, 3)
    described = configuration.describe()
    assert described["workers"] == (7, "command line")
    assert described["slots"] == (5, "environment (PESTFLEET_SLOTS)")
    assert described["threads"] == (3, str(path))
    assert described["deliveries"] == (3, "default")


def test_engine_options_are_merged_one_by_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(here, "[engine_options]\nnoptmax = 3\nRLAMBDA1 = 5.0\nies_num_reals = 10\n")
    monkeypatch.setenv("PESTFLEET_ENGINE_OPTIONS__RLAMBDA1", "7")
    configuration = read_configuration(given={"engine_options": {"noptmax": "9"}})
    assert configuration.settings.engine_options == {
        "noptmax": "9",
        "rlambda1": "7",
        "ies_num_reals": "10",
    }
    described = configuration.describe()
    assert described["engine_options.noptmax"] == ("9", "command line")
    assert described["engine_options.rlambda1"][1] == (
        "environment (PESTFLEET_ENGINE_OPTIONS__RLAMBDA1)"
    )


def test_no_option_on_the_command_line_leaves_those_of_the_file(here: Path) -> None:
    write_settings(here, "[engine_options]\nnoptmax = 3\n")
    assert read_settings(given={"engine_options": {}}).engine_options == {"noptmax": "3"}


def test_option_values_become_the_text_of_a_control_file(here: Path) -> None:
    write_settings(
        here, "[engine_options]\na = true\nb = [0.1, 1, 10]\nc = 1e-3\nd = 'x y'\ne = false\n"
    )
    assert read_settings().engine_options == {
        "a": "true",
        "b": "0.1,1,10",
        "c": "0.001",
        "d": "x y",
        "e": "false",
    }


def test_the_file_of_the_case_comes_first_then_the_nearest_above(here: Path) -> None:
    outer = write_settings(here.parent, "workers = 2\n")
    case = here / "case"
    case.mkdir()
    control = case / "model.pst"
    control.touch()
    assert find_settings_file(control) == outer
    own = write_settings(case, "workers = 4\n")
    assert find_settings_file(control) == own
    assert read_settings(control).workers == read_settings(case).workers == 4
    assert read_settings().workers == 2


def test_folders_of_a_file_are_relative_to_it(here: Path) -> None:
    write_settings(here.parent, "sessions = 'runs'\nscratch = 'tmp'\n")
    settings = read_settings()
    assert settings.sessions == here.parent / "runs"
    assert settings.scratch == str(here.parent / "tmp")


def test_unknown_setting_names_file_line_and_the_nearest_one(here: Path) -> None:
    path = write_settings(here, "engine = 'glm'\n\ntime-limits = 3\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"{path}:3: there is no setting 'time-limits'"
    assert caught.value.remedy.startswith("Did you mean time_limit? Settings: engine, on, workers")


def test_a_file_that_is_not_toml_is_said(here: Path) -> None:
    path = write_settings(here, "workers: 4\n")
    with pytest.raises(ConfigurationError, match="is not a TOML file") as caught:
        read_settings()
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("line", "message", "expected"),
    [
        ("workers = 'four'", "workers is 'four'", "a whole number, 1 or more"),
        ("workers = 0", "workers is 0", "a whole number, 1 or more"),
        ("time_limit = -1", "time_limit is -1", "a number of seconds"),
        ("time_limit = nan", "time_limit is nan", "a number of seconds"),
        ("engine = 3", "engine is 3", "the name of an engine, as text"),
        ("engine_options = 3", "engine_options is 3", "a table of the engine's options"),
        ("engine_options.a.b = 3", "engine_options is {'a': {'b': 3}}", "a table of the engine's"),
        ("memory = '2 parsecs'", "memory is '2 parsecs'", "a size as text, such as 2g"),
        ("memory = 2", "memory is 2", "a size as text, such as 2g"),
        ("cpus = -1", "cpus is -1", "a number of cores"),
        ("pids = 0", "pids is 0", "a whole number, 1 or more"),
        ("master = 'home'", "master is 'home'", "there (with the workers) or here"),
        ("image = 3", "image is 3", "a table, with base"),
        ("image.base = 'x y'", "image.base is 'x y'", "the name of an image"),
        ("image.apt = ['-y']", "image.apt is ['-y']", "a list of Debian packages"),
        ("image.apt = ['a; rm x']", "image.apt is ['a; rm x']", "a list of Debian packages"),
        ("image.pip = ['--pre']", "image.pip is ['--pre']", "a list of what pip installs"),
        ("image.registry = 'https://x'", "image.registry is 'https://x'", "a registry"),
    ],
)
def test_wrong_value_in_a_file(here: Path, line: str, message: str, expected: str) -> None:
    path = write_settings(here, f"# ours\n{line}\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"{path}:2: {message}"
    assert caught.value.remedy.startswith(f"Expected: {expected}")


def test_wrong_value_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PESTFLEET_TIME_LIMIT", "soon")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == "environment variable PESTFLEET_TIME_LIMIT is 'soon'"


def test_options_in_the_environment_that_are_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PESTFLEET_ENGINE_OPTIONS", "noptmax=3")
    with pytest.raises(ConfigurationError, match="PESTFLEET_ENGINE_OPTIONS is not a JSON object"):
        read_settings()


def test_wrong_value_on_the_command_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(given={"time_limit": -3.0})
    assert caught.value.message == "--time-limit is -3.0"


def test_a_wrong_value_is_told_even_where_a_better_one_wins(here: Path) -> None:
    write_settings(here, "workers = 'many'\n")
    with pytest.raises(ConfigurationError, match="workers is 'many'"):
        read_settings(given={"workers": 3})


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://me:{PASSWORD}@host:5672/vhost",
        f"amqps://me:{PASSWORD}@host",
        f"amqp://me:{PASSWORD}@x/{PASSWORD}#@host",
        f"amqp://:{PASSWORD}@host",
    ],
)
def test_passwords_are_blotted_out(url: str) -> None:
    assert PASSWORD not in redact(f"cannot reach {url} now")
    assert redact(url).startswith(url.partition("://")[0] + "://")
    configuration = read_configuration(given={"broker": url})
    assert configuration.settings.broker_url == url
    assert PASSWORD not in repr(configuration)
    shown, origin = configuration.describe()["broker"]
    assert PASSWORD not in shown
    assert "***" in shown
    assert origin == "command line"


def test_urls_without_password_stay_as_they_are() -> None:
    assert redact("see amqp://guest@host:5672/x and a@b") == "see amqp://guest@host:5672/x and a@b"


def test_a_wrong_broker_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PESTFLEET_BROKER", f"redis:{PASSWORD}")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert PASSWORD not in str(caught.value)
    assert "PESTFLEET_BROKER is wrong" in caught.value.message
    assert caught.value.__suppress_context__  # pydantic's error has the value


def test_a_password_in_the_folder_of_the_case_is_refused(here: Path) -> None:
    case = here / "case"
    write_settings(case, f"\nbroker = 'amqp://me:{PASSWORD}@host'\n")
    with pytest.raises(ConfigurationError, match="copied to every worker") as caught:
        read_settings(case)
    assert PASSWORD not in str(caught.value)
    assert "pestfleet.toml:2" in caught.value.message


def test_a_password_outside_the_case_is_taken(here: Path) -> None:
    url = f"amqp://me:{PASSWORD}@host"
    write_settings(here, f"broker = '{url}'\n")
    case = here / "case"
    case.mkdir()
    assert read_settings(case).broker_url == url


@pytest.mark.parametrize(
    ("variable", "value", "meant"),
    [
        ("PESTFLEET_WORKER", "3", "PESTFLEET_WORKERS"),
        ("PESTFLEET_TIMELIMIT", "3", "PESTFLEET_TIME_LIMIT"),
        ("PESTFLEET_ENGINE_OPTION__NOPTMAX", "3", "PESTFLEET_ENGINE_OPTIONS__NOPTMAX"),
    ],
)
def test_a_misspelt_variable_is_told(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, meant: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"environment variable {variable}: there is no such setting"
    assert caught.value.remedy == f"Did you mean {meant}?"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PESTFLEET_WORKER", "session/local-1/4711"),
        ("PESTFLEET_SLOT", "/tmp/scratch/local-1/0"),
        ("PESTFLEET_ENGINES", "/opt/pestpp"),
        ("PESTFLEET_BROKER_FILE", "/run/secrets/broker"),
        ("PESTFLEET_BROKER_SERVICE_HOST", "10.0.0.1"),
        ("PESTFLEET_TEST_DELIVERIES", "1"),
        ("PESTFLEET_WORKERS", ""),
    ],
)
def test_other_variables_are_let_be(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert read_settings().workers == os.cpu_count()


@pytest.mark.parametrize("memory", ["", "2g", "512M", "1.5gb", "1073741824"])
def test_memory_in_dockers_form(memory: str) -> None:
    assert read_settings(given={"memory": memory}).memory == memory.lower()


def test_image_settings_are_merged_one_by_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(
        here.parent, "[image]\nbase = 'debian:12'\nca = 'ca.pem'\nregistry = 'example.com/me/'\n"
    )
    monkeypatch.setenv("PESTFLEET_IMAGE__BASE", "debian:13")
    monkeypatch.setenv("PESTFLEET_IMAGE__APT", "libgfortran5 libgomp1")
    monkeypatch.setenv("PESTFLEET_IMAGE__PIP", '["flopy >= 3.9"]')
    configuration = read_configuration()
    image = configuration.settings.image
    assert (image.base, image.apt) == ("debian:13", ["libgfortran5", "libgomp1"])
    assert image.pip == ["flopy >= 3.9"]
    assert image.registry == "example.com/me"
    assert image.ca == str(here.parent / "ca.pem")
    assert image.broker == "rabbitmq:3.13"
    described = configuration.describe()
    assert described["image.base"] == ("debian:13", "environment (PESTFLEET_IMAGE__BASE)")
    assert described["image.ca"][1] == str(here.parent / "pestfleet.toml")
    assert described["image.broker"][1] == "default"


def test_debian_packages_in_all_their_forms(here: Path) -> None:
    names = ["g++", "libc6:i386", "gdal-bin=3.6.2+dfsg-1+b2", "python3-numpy/bookworm-backports"]
    write_settings(here, f"[image]\napt = {names}\n")
    assert read_settings().image.apt == names


def test_an_unknown_image_setting_names_line_and_the_nearest_one(here: Path) -> None:
    path = write_settings(here, "engine = 'glm'\n[image]\n\nbsae = 'x'\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"{path}:4: image.bsae: there is no setting 'bsae' in [image]"
    assert caught.value.remedy.startswith("Did you mean base? Settings: base, apt, pip")


def test_a_wrong_entry_is_found_in_its_own_table(here: Path) -> None:
    path = write_settings(here, "broker = 'amqp://x'\n[image]\napt = []\nbroker = 3\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"{path}:4: image.broker is 3"


def test_a_wrong_image_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PESTFLEET_IMAGE__BSAE", "x")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == (
        "environment variable PESTFLEET_IMAGE__BSAE: there is no setting 'bsae' in [image]"
    )
    monkeypatch.delenv("PESTFLEET_IMAGE__BSAE")
    monkeypatch.setenv("PESTFLEET_IMAGE", "debian:12")
    with pytest.raises(ConfigurationError, match="PESTFLEET_IMAGE is not a JSON object") as caught:
        read_settings()
    assert "PESTFLEET_IMAGE__BASE=" in caught.value.remedy


def test_a_package_index_with_a_password_is_refused_and_not_shown(here: Path) -> None:
    path = write_settings(here, f"[image]\nindex = 'https://me:{PASSWORD}@example.com/simple'\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message == f"{path}:2: image.index is wrong"
    assert PASSWORD not in str(caught.value)


def test_the_list_of_settings_in_the_documents_is_whole() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    named = {word.strip("[]") for word in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)}
    tables = (Settings, ImageSettings, AmazonSettings)
    assert named == {name for table in tables for name in table.model_fields}


def test_every_setting_says_what_it_expects() -> None:
    assert EXPECTED.keys() == {
        *Settings.model_fields,
        *(f"image.{name}" for name in ImageSettings.model_fields),
        *(f"amazon.{name}" for name in AmazonSettings.model_fields),
    }


@pytest.mark.parametrize(
    ("given", "environment", "file", "expected"),
    [
        ("4..50", "", "", (4, 50)),
        (None, "4..50", "", (4, 50)),
        (None, "", 'workers = "4..50"', (4, 50)),
        (None, "", "workers = 4\nmost = 50", (4, 50)),
        (8, "4..50", 'workers = "2..3"', (8, 0)),
        (None, "8", 'workers = "4..50"', (8, 0)),
        ("3..3", "", "", (3, 3)),
    ],
)
def test_a_range_of_workers(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: object,
    environment: str,
    file: str,
    expected: tuple[int, int],
) -> None:
    write_settings(here, file)
    monkeypatch.setenv("PESTFLEET_WORKERS", environment)
    settings = read_settings(given={"workers": given})
    assert (settings.workers, settings.most) == expected


def test_most_of_the_command_line_goes_with_workers_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PESTFLEET_WORKERS", "4")
    settings = read_settings(given={"most": 9})
    assert (settings.workers, settings.most) == (4, 9)


@pytest.mark.parametrize("text", ["50..4", "4..", "..5", "0..5", "a..b", "1...4"])
def test_what_is_no_range_of_workers(here: Path, text: str) -> None:
    path = write_settings(here, f'workers = "{text}"')
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert caught.value.message.startswith(f"{path}:1: workers is ")
    assert "a range of two such as 4..50" in caught.value.remedy


@pytest.mark.parametrize(
    ("on", "limits"),
    [("local", (0.0, 0.0)), ("compose", (20.0, 0.0)), ("kubernetes", (20.0, 72.0))],
)
def test_limits_suit_the_target_unless_they_are_given(
    on: str, limits: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(given={"on": on})
    assert (settings.idle_minutes, settings.max_hours) == limits
    assert read_configuration(given={"on": on}).describe()["max_hours"] == (limits[1], "default")
    monkeypatch.setenv("PESTFLEET_IDLE_MINUTES", "0")
    settings = read_settings(given={"on": on, "max_hours": 1.5})
    assert (settings.idle_minutes, settings.max_hours) == (0.0, 1.5)
