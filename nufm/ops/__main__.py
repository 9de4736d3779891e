"""``python -m nufm.ops``: op x backend, active or why not."""

from __future__ import annotations

import torch

from nufm.ops.dispatch import VARIABLE, preference, table


def main() -> None:
    rows = table()
    width = [max(len(row[i]) for row in rows) for i in range(2)]
    last = None
    for op, backend, state in rows:
        print(f"{op if op != last else '':{width[0]}}  {backend:{width[1]}}  {state}")
        last = op
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"\n{VARIABLE}={','.join(preference())}; torch {torch.__version__}; GPU: {', '.join(gpus) or 'none'}")


if __name__ == "__main__":
    main()
