"""Files with many events each: the particles of all events below one another, and how many each event has."""

from pathlib import Path

import numpy as np

from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.data.arrays import open_array_file
from maemm.data.files import existing, fingerprint


class EventFiles(Source):
    """.npz files with "particles" (all, 7), "counts" (events,) and "y", the labels (events,)."""

    def __init__(self, paths: list[Path], name: str):
        self.paths, self.modality, self.samples = paths, name, []  # (id, particles, label)
        for path in paths:
            try:
                with open_array_file(path) as stored:
                    particles, counts, labels = stored["particles"], stored["counts"], stored["y"].tolist()
                if counts.sum() != len(particles) or len(labels) != len(counts):
                    raise ValueError(f"counts and y do not fit {len(particles)} particles")
            except (OSError, ValueError, TypeError) as error:
                raise MaemmError(f"cannot read events ({path}: {error}); store particles, counts and y") from error
            events = np.split(particles, counts.cumsum()[:-1])
            self.samples += [(f"{path.name}#{i}", *sample) for i, sample in enumerate(zip(events, labels, strict=True))]

    def __len__(self):
        return len(self.samples)

    def name(self, index):
        return self.samples[index][0]

    def label(self, index):
        return self.samples[index][2]

    def read(self, index, rng):
        name, event, label = self.samples[index]
        return Sample({self.modality: event}, name, label)

    def files(self):
        return self.paths

    def fingerprint(self):
        return fingerprint("events", *(part for sample in self.samples for part in sample))


def open_events(root: str | None, list: str | None = None, *, name: str = "events") -> Source:
    """Events of all .npz files in a folder.

    Options
        name: the modality that the samples are for
    """
    paths = sorted(existing(root, "data.root").glob("*.npz")) if root and list is None else []
    if not paths:
        raise MaemmError(f"no .npz file is in the folder ({root}); set data.root to one of events, and no data.list")
    return EventFiles(paths, name)


def write(root):
    """Write ``root/events.npz``: 64 made-up events of two kinds, 1 to 4 jets of 2 to 7 particles each."""
    random, events, kinds = np.random.default_rng(0), [], np.arange(64) % 2
    Path(root).mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        jets = random.integers(1 + kind, 4 + kind)
        axes = random.uniform((-1.5, -3), (1.5, 3), size=(jets, 2))
        jet = np.repeat(np.arange(jets), random.integers(2, 8, jets))
        pt = random.exponential(8 / (1 + kind), len(jet)) + 0.5
        species = random.choice(5, len(jet), p=(0.5, 0.2, 0.1, 0.1, 0.1))
        charge = np.where(species < 2, random.choice([-1, 1], len(jet)), 0)
        mass = np.array([0.14, 0.49, 0.5, 0.94, 0.001])[species]
        events.append(
            np.stack([pt, *(axes[jet] + 0.2 * random.normal(size=(len(jet), 2))).T, mass, species, charge, jet], 1)
        )
    np.savez(Path(root) / "events.npz", particles=np.concatenate(events), counts=[*map(len, events)], y=kinds)
