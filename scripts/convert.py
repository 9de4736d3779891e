"""Convert events of several sub-detectors, npz files to HDF5 and back, and pixel maps. See --help."""

from nufm.commands.convert import main

if __name__ == "__main__":
    main()
