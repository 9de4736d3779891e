"""Study a trained classifier of pixel maps: noise, resolution, dead pixels, calibration and others. See --help."""

from nufm.commands.study import study

if __name__ == "__main__":
    study()
