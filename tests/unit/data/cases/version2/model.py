"""Writes four numbers that depend on five."""

with open("model.in") as file:
    k1, k2, s, h0, t = (float(line) for line in file)
with open("model.out", "w") as file:
    file.write(f"{h0 / k1} {h0 / k2}\n")
    file.write(f"flows {k1 * s}\nx {k2 * t}\n")
