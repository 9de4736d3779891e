"""The table in the README: what `python scripts/pretrain.py` scores on this machine, and how long each part takes.

    python benchmarks/tiny_panda.py          # about 10 minutes on two CPU cores
"""

from __future__ import annotations

import shutil
import sys
import time

from record import RESULTS, write_result
from rich.console import Console

from nufm.cli import RunCLI, export, fit
from nufm.report import markdown, print_table, write_report


def main() -> None:
    console = Console(stderr=True)
    start = time.perf_counter()
    cli = RunCLI(sys.argv[1:])
    cli.datamodule.prepare_data()
    simulated = time.perf_counter()
    fit(cli, console)
    trained = time.perf_counter()
    export(cli)
    options = cli.config_init.report
    report = write_report(cli.model, cli.datamodule, cli.run_dir, options.n_events, options.probe)
    ended = time.perf_counter()
    print_table(report, console)
    steps, batch = cli.trainer.global_step, cli.datamodule.batch_size
    report |= {
        "seed": cli.config.seed_everything,
        "data": "simulated by nufm",
        "seconds": {"simulation": simulated - start, "training": trained - simulated, "probe": ended - trained},
        "steps": steps,
        "training_events_per_second": steps * batch / (trained - simulated),
        "encoder_parameters": sum(p.numel() for p in cli.model.encoder.parameters()),
    }
    write_result("tiny_panda", report, markdown(report) + f"{steps} steps of {batch} events.\n")
    for picture in ("features.png", "event.png", "training.png"):
        shutil.copy(cli.run_dir / "pictures" / picture, RESULTS / f"tiny_panda_{picture}")


if __name__ == "__main__":
    main()
