"""Score a trained model: tables, confusion matrices, calibration, event displays. See --help."""

from nufm.commands.evaluate import evaluate

if __name__ == "__main__":
    evaluate()
