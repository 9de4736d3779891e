"""Forward-neutrino interactions in FASERCal: generator, showers, tracks, three-view read-out, truth, files."""
