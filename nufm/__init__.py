"""nufm: self-supervised pretraining on neutrino-detector data.

Importing the package is light: it compiles nothing and needs no optional package.
"""

__version__ = "0.1.0"
