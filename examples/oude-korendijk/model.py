"""Drawdown around a pumped well in a confined aquifer, by the formula of Theis (1935).

Reads `model_input.txt` (made from the template) and the columns `distance_m` and `time_min` of
`drawdown.csv`; the measured drawdowns in that file are not used. Writes `drawdown.out`. Needs
Python 3.8 or newer and nothing else.
"""

import csv
import math

EULER = 0.57721566490153286061
MINUTES_PER_DAY = 1440.0


def well_function(u):
    """The exponential integral E1(u) for u > 0, to about 14 digits.

    Abramowitz and Stegun (1964): series 5.1.11 up to u = 1; above it the continued fraction
    5.1.22 in its even form, evaluated with the method of Lentz.
    """
    if u <= 1.0:
        total, power = 0.0, 1.0
        for k in range(1, 40):
            power *= -u / k
            total -= power / k
            if abs(power) < 1e-17 * k * abs(total):
                break
        return -EULER - math.log(u) + total
    b = u + 1.0
    c, d = math.inf, 1.0 / b
    fraction = d
    for k in range(1, 500):
        a = -float(k * k)
        b += 2.0
        d = 1.0 / (a * d + b)
        c = b + a / c
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return fraction * math.exp(-u)


def drawdown(transmissivity, storage, rate, distance, time):
    """Drawdown (m) at `distance` (m) from the well, `time` (d) after pumping began.

    `transmissivity` in m2/d, `rate` in m3/d, `storage` without unit.
    """
    u = distance**2 * storage / (4.0 * transmissivity * time)
    return rate / (4.0 * math.pi * transmissivity) * well_function(u)


def main():
    with open("model_input.txt") as file:
        values = {words[0]: float(words[1]) for words in map(str.split, file) if words}
    with open("drawdown.csv", newline="") as file:
        points = [
            (float(row["distance_m"]), float(row["time_min"])) for row in csv.DictReader(file)
        ]
    with open("drawdown.out", "w") as file:
        file.write("distance_m time_min   drawdown_m\n")
        for distance, minutes in points:
            value = drawdown(
                values["transmissivity_m2_per_d"],
                values["storage"],
                values["rate_m3_per_d"],
                distance,
                minutes / MINUTES_PER_DAY,
            )
            file.write(f"{distance:<10.2f} {minutes:<10.2f} {value:.10e}\n")


if __name__ == "__main__":
    main()
