"""Single particles in a volume of scintillator cubes in a magnetic field, as in the SuperFGD of T2K."""
