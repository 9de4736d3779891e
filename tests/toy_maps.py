"""Hand-made pixel maps that a class is known of, and a small trained-looking network, for tests."""

from __future__ import annotations

import numpy as np

from nufm.data.images import VIEWS, ImageEvent, View


def toy_event(kind: int, seed: int = 0, size: int = 32, missing: str | None = None) -> ImageEvent:
    """A long straight line of 2 MeV pixels from the middle (νµ CC), a cone of them (νe CC), or a blob (NC)."""
    rng = np.random.default_rng([seed, kind])
    views = {}
    for view in VIEWS:
        if view == missing:
            continue
        image = np.zeros((size, size), dtype=np.float32)
        middle, slope = size // 2, rng.uniform(-0.5, 0.5)
        for step in range(size // 2):
            spread = (0, step / 3, 3)[kind]
            for _ in range(1 if kind == 0 else 3):
                row = round(middle + slope * step * (kind != 2) + rng.normal() * spread)
                column = middle + (step if kind != 2 else round(rng.normal() * 3))
                if 0 <= row < size and 0 <= column < size:
                    image[row, column] += rng.uniform(1.5, 2.5)
        views[view] = View.of_image(image)
    truth = {
        "interaction": np.int64(kind),
        "mode": np.int64(seed % 3),
        "neutrino_energy": np.float32(1 + seed % 9),
        "inelasticity": np.float32(0.25),
        "lepton": np.array([0.0, 0.0, 0.75], np.float32),
        "vertex": np.zeros(3, np.float32),
    }
    return ImageEvent(views, (size, size), 5.0, "MeV", truth, f"toy.h5#{3 * seed + kind}", seed)


def toy_events(n: int, size: int = 32) -> list[ImageEvent]:
    """n events, the classes in turns."""
    return [toy_event(i % 3, i // 3, size) for i in range(n)]
