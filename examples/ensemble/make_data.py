"""Makes the case's tables from a field of conductivities that only this script knows.

The truth is one draw from the prior: log10 of the conductivity is Gaussian, with mean 1, standard
deviation 0.4, and the covariance 0.16 exp(-distance / 600 m). The measurements are the model's
outputs for it, with noise. Writes, into its own folder:

    parameters.csv   parameter data: the prior's mean, and bounds
    observations.csv observation data: measurements, and the truth of the forecasts (weight 0)
    prior.cov        prior covariance of log10 conductivity, a PEST matrix file
    conductivity.tpl, transect.ins
    truth.csv        the true field, to compare with; the case does not use it

Run it again and every file is the same, byte for byte. Needs Python 3.10 or newer and nothing else.
"""

import math
import os
import random
import sys

import model

SEED = 22
ZONES = 100
MEAN, DEVIATION, RANGE = 1.0, 0.4, 600.0  # of log10 of the conductivity in m/d; the range in m
LOWER, UPPER = 0.25, 400.0  # m/d: four standard deviations below and above the mean
HEAD_NOISE = 0.25  # m, standard deviation
FLOW_NOISE = 0.10  # of the flow itself

WIDTH = model.LENGTH / ZONES
NAMES = [f"k{zone + 1:03d}" for zone in range(ZONES)]


def covariance():
    """Prior covariance, rounded as the file has it."""
    return [
        [round(DEVIATION**2 * math.exp(-abs(i - j) * WIDTH / RANGE), 6) for j in range(ZONES)]
        for i in range(ZONES)
    ]


def cholesky(matrix):
    """The lower triangle whose product with its transpose is `matrix`."""
    root = [[0.0] * len(matrix) for _ in matrix]
    for i, row in enumerate(root):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(row[k] * root[j][k] for k in range(j))
            row[j] = math.sqrt(rest) if i == j else rest / root[j][j]
    return root


def normal(generator):
    """One standard normal draw (Box and Muller), the same with every version of Python."""
    radius = math.sqrt(-2.0 * math.log(1.0 - generator.random()))
    return radius * math.cos(2.0 * math.pi * generator.random())


def draw_truth(generator):
    """The true conductivities (m/d), rounded: what the last digit of a sine is depends on the
    machine."""
    independent = [normal(generator) for _ in range(ZONES)]
    return [
        float(f"{10.0 ** (MEAN + sum(a * b for a, b in zip(row, independent, strict=True))):.6g}")
        for row in cholesky(covariance())
    ]


def name_observation(output):
    """Name, group and kind of an output of the model."""
    kind, _, place = output.rpartition("_")
    if kind == "head":
        forecast = int(place) == model.FORECAST_HEAD
        return f"h{int(place):04d}", "forecast" if forecast else "head"
    return ("q_river", "flow") if place == "river" else (f"t{int(place):04d}", "forecast")


def observe(truth, generator):
    """(name, value, weight, group) of each observation; forecasts are true, and have weight 0."""
    rows = []
    for output, value in model.simulate(truth):
        name, group = name_observation(output)
        deviation = HEAD_NOISE if group == "head" else round(FLOW_NOISE * value, 2)
        if group != "forecast":
            value += deviation * normal(generator)
        weight = 0.0 if group == "forecast" else round(1.0 / deviation, 6)
        rows.append((name, f"{value:.3f}", f"{weight:g}", group))
    return rows


def write(folder, name, lines):
    """Lines end with a line feed, on Windows too."""
    with open(os.path.join(folder, name), "w", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


def main(folder):
    generator = random.Random(SEED)
    truth = draw_truth(generator)
    observations = observe(truth, generator)
    centres = [(zone + 0.5) * WIDTH for zone in range(ZONES)]

    head = "parnme,partrans,parchglim,parval1,parlbnd,parubnd,pargp,scale,offset,dercom"
    rows = [f"{name},log,factor,{10.0**MEAN},{LOWER},{UPPER},k,1.0,0.0,1" for name in NAMES]
    write(folder, "parameters.csv", [head, *rows])

    rows = [",".join(row) for row in observations]
    write(folder, "observations.csv", ["obsnme,obsval,weight,obgnme", *rows])

    rows = [" ".join(f"{value:.6f}" for value in row) for row in covariance()]
    head, names = f"{ZONES} {ZONES} 1", "* row and column names"
    write(folder, "prior.cov", [head, *rows, names, *NAMES])

    # Fields of 25 characters hold every digit of a double.
    rows = [f"{x:g},~ {name:<23}~" for x, name in zip(centres, NAMES, strict=True)]
    write(folder, "conductivity.tpl", ["ptf ~", "x_m,conductivity_m_per_d", *rows])

    rows = [f"l1 w !{name}!" for name, _, _, _ in observations]
    write(folder, "transect.ins", ["pif ~", *rows])

    rows = [f"{x:g},{value:g}" for x, value in zip(centres, truth, strict=True)]
    write(folder, "truth.csv", ["x_m,conductivity_m_per_d", *rows])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
