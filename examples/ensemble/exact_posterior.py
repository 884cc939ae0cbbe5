"""The posterior without an ensemble smoother's approximations, to compare with. Needs NumPy.

Markov chains from the prior to the measurements, by the method of Cotter, Roberts, Stuart and
White (2013), "MCMC methods for functions", section 4: a proposal mixes the present field with a
draw from the prior, and is taken or not by the change of phi alone. 100 chains side by side, with
100,000 steps each: 10 million runs of the model, in about a minute. No real model can be asked so
often; that is why smoothers exist.
"""

import os
import sys

import make_data
import model
import numpy as np

CHAINS, STEPS = 100, 100_000
FIRST_KEPT, KEPT_EVERY = STEPS // 4, 20
TUNED_EVERY = 50  # steps, in the first fifth of all
ACCEPTED = 0.25  # share of proposals to be taken


def simulate(conductivities):
    """(fields, 18 outputs) for (fields, zones): what `model.simulate` gives, for many at once."""
    zones = conductivities.shape[1]
    width = model.LENGTH / zones
    resistance = width / conductivities
    middle = (np.arange(zones) + 0.5) * width
    drop = (model.HEAD_LEFT**2 - model.HEAD_RIGHT**2) / 2.0
    flow = drop - model.RECHARGE * (resistance * middle).sum(axis=1)
    flow = (flow / resistance.sum(axis=1))[:, np.newaxis]
    taken = np.cumsum(2.0 * resistance * (flow + model.RECHARGE * middle), axis=1)
    squares = model.HEAD_LEFT**2 - np.hstack([np.zeros((len(taken), 1)), taken])

    def head(x):
        zone = np.minimum((x / width).astype(int), zones - 1)
        left = zone * width
        part = (x - left) * (flow + model.RECHARGE * (left + x) / 2.0)
        return np.sqrt(squares[:, zone] - 2.0 * part / conductivities[:, zone])

    steps = round(model.FORECAST_START / width) * model.STEPS_PER_ZONE
    x = model.FORECAST_START * np.arange(steps + 1) / steps
    outward = -(flow + model.RECHARGE * x)
    never = outward.min(axis=1) <= 0.0
    slowness = head(x) / np.where(never[:, np.newaxis], 1.0, outward)
    mean = (slowness[:, :-1] + slowness[:, 1:]).mean(axis=1) / 2.0
    years = model.POROSITY * mean * model.FORECAST_START / model.DAYS_PER_YEAR
    years[never] = 1.0e6
    places = np.array([*model.PIEZOMETERS, model.FORECAST_HEAD], dtype=float)
    heads = head(places)
    return np.column_stack([heads[:, :-1], -flow, heads[:, -1], years])


def sample(values, weights, rng):
    """Fields (log10) and outputs that the chains visit, after a first quarter; phi of each."""
    root = np.linalg.cholesky(np.array(make_data.covariance()))

    def evaluate(independent):
        outputs = simulate(10.0 ** (make_data.MEAN + independent @ root.T))
        return outputs, (((outputs - values) * weights) ** 2).sum(axis=1)

    state = rng.standard_normal((CHAINS, len(root)))
    outputs, phi = evaluate(state)
    mix, taken = 0.1, 0
    fields, kept, phis = [], [], []
    for step in range(STEPS):
        proposal = np.sqrt(1.0 - mix**2) * state + mix * rng.standard_normal(state.shape)
        new_outputs, new_phi = evaluate(proposal)
        better = np.log(rng.random(CHAINS)) < (phi - new_phi) / 2.0
        state[better], outputs[better], phi[better] = (
            proposal[better], new_outputs[better], new_phi[better],
        )  # fmt: skip
        taken += better.mean()
        if step < STEPS // 5 and step % TUNED_EVERY == TUNED_EVERY - 1:
            mix = min(0.5, max(0.005, mix * np.exp(taken / TUNED_EVERY - ACCEPTED)))
            taken = 0
        if step >= FIRST_KEPT and step % KEPT_EVERY == 0:
            fields.append(make_data.MEAN + state @ root.T)
            kept.append(outputs.copy())
            phis.append(phi.copy())
    return np.concatenate(fields), np.concatenate(kept), np.concatenate(phis)


def main(folder):
    with open(os.path.join(folder, "observations.csv")) as file:
        rows = [line.strip().split(",") for line in file][1:]
    values, weights = (np.array([float(row[i]) for row in rows]) for i in (1, 2))
    fields, outputs, phi = sample(values, weights, np.random.default_rng(1))
    print(f"phi {phi.mean():.1f}")
    for (name, _, weight, _), column in zip(rows, outputs.T, strict=True):
        if float(weight) == 0.0 or name == "q_river":
            low, high = np.quantile(column, [0.025, 0.975])
            print(f"{name} {column.mean():.3f} ± {column.std():.3f}, 95 %: {low:.3f} … {high:.3f}")
    print(f"standard deviation of log10 k, mean of all zones: {fields.std(axis=0).mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
