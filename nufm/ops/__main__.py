"""``python -m nufm.ops``: op x backend, active or why not."""

from __future__ import annotations

import torch

from nufm.ops.dispatch import AUTO, VARIABLE, preference, table


def main() -> None:
    try:
        asked = preference()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    rows = table()
    width = [max(len(row[i]) for row in rows) for i in range(2)]
    last = None
    for op, backend, state in rows:
        print(f"{op if op != last else '':{width[0]}}  {backend:{width[1]}}  {state}")
        last = op
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if asked != AUTO:
        print(f"\nThis is what 'auto' would choose from; {VARIABLE}={','.join(asked)} forces these, in this order.")
    print(f"\n{VARIABLE}={','.join(asked)}; torch {torch.__version__}; GPU: {', '.join(gpus) or 'none'}")


if __name__ == "__main__":
    main()
