from __future__ import annotations

import pytest

from fake_runner import make_control, make_parameter
from pestfleet.control.model import Mode, Parameter
from pestfleet.engines.glm.settings import Settings, choose_scaling, read_settings
from pestfleet.engines.glm.space import build_space
from pestfleet_worker.errors import CaseError, ConfigurationError


def read(data=None, options=None, user=None, mode: Mode = "estimation") -> Settings:  # type: ignore[no-untyped-def]
    control = make_control({"a": 1.0}, [0.0], control_data=data, options=options, mode=mode)
    return read_settings(control, user or {})


def test_case_options_and_user_in_this_order() -> None:
    data: dict[str, float | str] = {
        "noptmax": 7,
        "rlambda1": 5.0,
        "relparmax": 2.0,
        "absparmax(2)": 0.5,
    }
    found = read(data, {"lambdas": "0.1, 1,10", "lambda_scale_fac": "0.5 1"}, {"NOPTMAX": "3"})
    assert (found.noptmax, found.rlambda1, found.relparmax) == (3, 5.0, 2.0)
    assert found.lambdas == (0.1, 1.0, 10.0)
    assert found.scale_factors == (0.5, 1.0)
    assert found.absparmax == {2: 0.5}
    assert read().noptmax == Settings().noptmax


def test_a_control_variable_is_no_option_of_the_case() -> None:
    assert read(options={"noptmax": "3"}).noptmax == Settings().noptmax


def test_numbers_of_fortran_and_negative_factors() -> None:
    assert read({"phiredstp": "5.0D-3"}).phiredstp == 0.005
    assert read({"rlamfac": -4.0}).rlamfac == 4.0
    assert read({"rlamfac": 1.0}).rlamfac == Settings().rlamfac
    assert read({"numlam": -12}).numlam == 12


def test_scaling_follows_the_case_and_the_user() -> None:
    assert read(options={"jac_scale": "false"}).scaling == "none"
    assert (
        read(options={"jac_scale": "0"}, user={"scaling": "sensitivity"}).scaling == "sensitivity"
    )
    assert choose_scaling(read(), rows=5, adjustable=5).scaling == "sensitivity"
    assert choose_scaling(read(), rows=4, adjustable=5).scaling == "none"


def test_options_that_would_change_the_answer_are_named() -> None:
    assert read({"iregadj": 1, "jacupdate": 0}, {"n_iter_super": "3"}).unused == (
        "iregadj",
        "n_iter_super",
    )
    assert read({"phiabandon": "phi.dat", "doaui": "aui"}).unused == ("doaui", "phiabandon")
    assert read({"phiabandon": 1e6, "doaui": "noaui"}).unused == ()


@pytest.mark.parametrize("mode", ["prediction", "pareto"])
def test_other_modes_are_refused(mode: Mode) -> None:
    with pytest.raises(CaseError, match=f"PESTMODE is {mode}"):
        read(mode=mode)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"noptmax": -3}, "NOPTMAX is -3: it must be from -2"),
        ({"facparmax": 1.0}, "FACPARMAX is 1.0: it must be above 1"),
        ({"facorig": 1.5}, "FACORIG is 1.5: it must be from 0 to 1"),
        ({"phiredstp": "small"}, "PHIREDSTP is small: it must be a number"),
        ({"absparmax(1)": 0.0}, "ABSPARMAX"),
        ({"rlambda1": float("nan")}, "RLAMBDA1"),
    ],
)
def test_values_that_make_no_sense(data: dict[str, float | str], message: str) -> None:
    with pytest.raises(CaseError) as caught:
        read(data)
    assert message in caught.value.message
    assert caught.value.remedy


def test_regularization_needs_phimlim() -> None:
    with pytest.raises(CaseError, match="PHIMLIM"):
        read(mode="regularization")
    found = read({"phimlim": 10.0}, mode="regularization")
    assert found.phimaccept == pytest.approx(10.5)
    with pytest.raises(CaseError, match="WFMIN"):
        read({"phimlim": 10.0, "wfmin": 2.0, "wfmax": 1.0}, mode="regularization")


def test_users_mistakes_are_configuration_errors() -> None:
    with pytest.raises(ConfigurationError, match="no option 'nopt_max'") as caught:
        read(user={"nopt_max": "3"})
    assert caught.value.remedy == "Did you mean noptmax?"
    with pytest.raises(ConfigurationError, match="no option 'quux'") as caught:
        read(user={"quux": "3"})
    assert "noptmax" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="noptmax=many"):
        read(user={"noptmax": "many"})
    with pytest.raises(ConfigurationError, match="final_jacobian=maybe"):
        read(user={"final_jacobian": "maybe"})


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (make_parameter("a", 5.0, upper=4.0), "starts at 5, outside"),
        (make_parameter("a", 1.0, lower=1.0, upper=1.0), "lower bound of 1"),
        (make_parameter("a", 1.0, transform="log", lower=0.0), "log-transformed"),
        (make_parameter("a", 1.0, change_limit="factor"), "factor-limited"),
        (make_parameter("a", 1.0, transform="tied", tied_to="b"), "tied to b, which is missing"),
        (make_parameter("a", 1.0, transform="tied", tied_to="zero"), "initial value is 0"),
    ],
)
def test_parameters_that_cannot_be_estimated(parameter: Parameter, message: str) -> None:
    control = make_control([parameter, make_parameter("zero", 0.0)], [0.0])
    with pytest.raises(CaseError) as caught:
        build_space(control)
    assert message in caught.value.message


def test_tied_bounds_hold_the_parent_where_asked() -> None:
    parameters = [
        make_parameter("a", 2.0, lower=0.0, upper=10.0),
        make_parameter("b", -4.0, lower=-6.0, upper=0.0, transform="tied", tied_to="a"),
    ]
    control = make_control(parameters, [0.0])
    assert build_space(control).upper.tolist() == [10.0]
    held = build_space(control, enforce_tied_bounds=True)
    assert (held.lower.tolist(), held.upper.tolist()) == ([0.0], [3.0])
