"""Simulate events: one file, or a data set with train, val and test. See --help."""

from nufm.simulation.command import simulate

if __name__ == "__main__":
    simulate()
