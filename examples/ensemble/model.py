"""Steady groundwater flow along a transect between two rivers, unconfined (Dupuit).

    d/dx (K h dh/dx) + N = 0,   h = 10 m at x = 0,   h = 14 m at x = 5000 m

K is constant within each of 100 zones of 50 m, and is read from `conductivity.csv` (made from the
template). Heads are above the flat base of the aquifer. The solution is exact: the flow to the
right is q(x) = q(0) + N x = -K/2 d(h2)/dx, so h2 = h squared follows from adding up what each zone
takes, and q(0) from the head at the far end.

Writes `transect.out`. Needs Python 3.8 or newer and nothing else.
"""

import math

LENGTH = 5000.0  # m
RECHARGE = 5.0e-4  # m/d
HEAD_LEFT, HEAD_RIGHT = 10.0, 14.0  # m above the base
POROSITY = 0.25
DAYS_PER_YEAR = 365.25

PIEZOMETERS = (
    150, 400, 600, 875, 1100, 1325, 1500, 1775, 2000, 2200, 2450, 2700, 2925, 3150, 3400,
)  # fmt: skip
FORECAST_HEAD = 4250  # m: where there is no piezometer
FORECAST_START = 1000  # m: where the water starts on its way to the river
STEPS_PER_ZONE = 4  # of the travel time's integration


def flow_at_left(conductivities):
    """Flow to the right at x = 0 (m2/d: m3/d for each m of river). Negative: into the river."""
    width = LENGTH / len(conductivities)
    resistance = moment = 0.0
    for zone, conductivity in enumerate(conductivities):
        resistance += width / conductivity
        moment += width * (zone + 0.5) * width / conductivity
    return ((HEAD_LEFT**2 - HEAD_RIGHT**2) / 2.0 - RECHARGE * moment) / resistance


def heads_at_borders(conductivities, flow):
    """Heads (m) at the left border of each zone, and at the right end."""
    width = LENGTH / len(conductivities)
    square = HEAD_LEFT**2
    heads = [HEAD_LEFT]
    for zone, conductivity in enumerate(conductivities):
        square -= 2.0 * width * (flow + RECHARGE * (zone + 0.5) * width) / conductivity
        heads.append(math.sqrt(square))
    return heads


def head_at(x, conductivities, flow, heads):
    """Head (m) at `x` (m)."""
    width = LENGTH / len(conductivities)
    zone = min(int(x / width), len(conductivities) - 1)
    left = zone * width
    taken = (x - left) * (flow + RECHARGE * (left + x) / 2.0)
    return math.sqrt(heads[zone] ** 2 - 2.0 * taken / conductivities[zone])


def years_to_river(start, conductivities, flow, heads):
    """Travel time (years) of water from `start` (m) to the left river, by the trapezoidal rule.

    Water moves at |q| / (porosity * h). It never arrives if the divide is left of `start`: then
    the answer is 1e6 years.
    """
    if flow + RECHARGE * start >= 0.0:
        return 1.0e6
    steps = round(start / (LENGTH / len(conductivities))) * STEPS_PER_ZONE
    total = 0.0
    for step in range(steps + 1):
        x = start * step / steps
        slowness = head_at(x, conductivities, flow, heads) / -(flow + RECHARGE * x)
        total += slowness if 0 < step < steps else slowness / 2.0
    return POROSITY * total * start / steps / DAYS_PER_YEAR


def simulate(conductivities):
    """All outputs, as (name, value), in the order of the output file."""
    flow = flow_at_left(conductivities)
    heads = heads_at_borders(conductivities, flow)
    outputs = [(f"head_{x}", head_at(x, conductivities, flow, heads)) for x in PIEZOMETERS]
    outputs.append(("inflow_of_river", -flow))
    outputs.append((f"head_{FORECAST_HEAD}", head_at(FORECAST_HEAD, conductivities, flow, heads)))
    years = years_to_river(FORECAST_START, conductivities, flow, heads)
    outputs.append((f"years_from_{FORECAST_START}", years))
    return outputs


def main():
    with open("conductivity.csv") as file:
        next(file)
        conductivities = [float(line.split(",")[1]) for line in file]
    with open("transect.out", "w") as file:
        for name, value in simulate(conductivities):
            # 17 digits: a double comes back as it was.
            file.write(f"{name:<16} {value:.16e}\n")


if __name__ == "__main__":
    main()
