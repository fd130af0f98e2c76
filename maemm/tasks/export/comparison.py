"""What was written beside the model: on whole samples, on padded ones and ones with gaps, on sets of other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.tasks.export.formats import Written
from maemm.tasks.export.inference_model import InferenceModel
from maemm.tasks.export.inputs import Inputs, input_name

BATCHES = (1, 3)  # batch sizes that are compared: 1 is where a graph is most easily specialised by accident
PARTS = (2 / 3, 1 / 3)  # of every axis of ``valid`` that is not padded; at least one element
SMALL_PARTS = (1 / 64, 0)  # where there is one axis


@dataclass(frozen=True)
class Samples:
    """Inputs (B, ...) that are compared, and what each row is."""

    inputs: Inputs
    titles: list[str]
    needed: bool = True  # False: other sizes than those that were asked for, which may be refused


def differences_of(exported: InferenceModel, written: Written) -> dict[str, float]:
    """{what was compared: largest absolute difference of any output from the model's}; NaN where only one is finite.

    Raises :class:`MaemmError` where outputs have other names or shapes than the model's.
    """
    differences: dict[str, float] = {}
    for samples in _all_samples(exported, written.elements):
        try:
            expected = exported.compute(samples.inputs, written.output)
            with torch.no_grad():
                outputs = written.run(samples.inputs)
        except Exception as error:  # whatever a library does with inputs that its file does not accept
            if not samples.needed:
                continue
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise MaemmError(
                f"what was written does not accept samples that the model accepts ({samples.titles[0]}: {reason}); "
                "nothing is kept, choose another target or --shape"
            ) from error
        if {name: x.shape for name, x in outputs.items()} != {name: x.shape for name, x in expected.items()}:
            raise MaemmError(
                f"the outputs of what was written have another shape than the model's ({samples.titles[0]})"
            )
        rows = torch.stack([_by_row(outputs[name], x) for name, x in expected.items()]).amax(0)
        for title, row in zip(samples.titles, rows.tolist(), strict=True):
            differences[title] = _larger(row, differences.get(title, 0.0))
    return differences


def worst_of(differences: Mapping[str, float]) -> str:
    """What differs most."""
    return max(differences, key=lambda title: _sortable(differences[title]))


def _sortable(difference: float) -> float:
    return difference if difference == difference else float("inf")  # NaN is worse than any number


def _larger(a: float, b: float) -> float:
    return max(a, b, key=_sortable)


def _by_row(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) twice -> (B,) largest difference; of equal infinities and of two NaN it is 0."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a.double() - b.double()).abs()).flatten(1).amax(1)


# ------------------------------------------------------------------------------------------------------ samples
def _all_samples(exported: InferenceModel, elements: Mapping[str, tuple[int, int | None]]) -> Iterator[Samples]:
    """``elements``: {modality: least and largest number of elements of a set that was written}."""
    for batch in BATCHES:
        yield Samples(exported.example(batch), [f"batch {batch}"] * batch)
    if not exported.ragged and not exported.optional:
        return
    padded = _padded(exported, {})
    yield padded
    yield Samples({name: x[-1:] for name, x in padded.inputs.items()}, [f"{padded.titles[-1]}, batch 1"])
    for name, (least, largest) in elements.items():
        count = exported.shapes[name][0]
        for other in (count // 2, 2 * count):
            other = max(other, least) if largest is None else min(max(other, least), largest)
            if other != count:
                yield _padded(exported, {name: other})


def _padded(exported: InferenceModel, elements: Mapping[str, int]) -> Samples:
    """A row for each kind of padding, the first one whole."""
    masks = {name: _usable(exported, name, elements) for name in exported.ragged}
    count = max([len(rows) for rows in masks.values()] + [1 + len(exported.optional)])
    inputs = exported.example(count, elements)
    for shift, (name, rows) in enumerate(masks.items()):  # shifted: not all modalities are whole in the same rows
        inputs[input_name(name, "valid")] = rows.roll(-shift, 0)[torch.arange(count) % len(rows)]
    for number, name in enumerate(exported.optional):
        inputs[input_name(name, "present")] = torch.arange(count) % (1 + len(exported.optional)) != number + 1
    titles = [[f"{name} of {size} elements" for name, size in elements.items()] for _ in range(count)]
    for name, rows in masks.items():
        valid, whole = inputs[input_name(name, "valid")], rows[0].numel()
        if exported.tokens(inputs, name).known is not None and valid.shape == inputs[name].shape:
            _add_nan(inputs, name)
        for title, row in zip(titles, inputs[input_name(name, "valid")].flatten(1).sum(1).tolist(), strict=True):
            title += [f"{name} with {row} of {whole} valid"] if row < whole else []
        if missing := int(inputs[name][-1].isnan().sum()):
            titles[-1].append(f"{name} with {missing} NaN")
    for name in exported.optional:
        for title, present in zip(titles, inputs[input_name(name, "present")].tolist(), strict=True):
            title += [] if present else [f"no {name}"]
    return Samples(inputs, [", ".join(title) or "whole beside padded" for title in titles], needed=not elements)


def _usable(exported: InferenceModel, name: str, elements: Mapping[str, int]) -> Tensor:
    """Values of NAME_valid (K, ...) with which a sample has a token: the first is all True, the others are not."""
    key = input_name(name, "valid")
    rows = _masks(tuple(exported.example(1, elements)[key].shape[1:]))
    inputs = exported.example(len(rows), elements) | {key: rows}
    valid = exported.tokens(inputs, name).valid
    return rows if valid is None else rows[valid.any(1)]


def _masks(shape: tuple[int, ...]) -> Tensor:
    """(K, *shape) bool: all True; padded along each axis; with a hole in each axis; with every third value missing."""
    whole = torch.ones(shape, dtype=torch.bool)
    masks = [whole]
    for axis, side in enumerate(shape):
        index = torch.arange(side).view(-1, *[1] * (len(shape) - axis - 1))
        parts = (*PARTS, *SMALL_PARTS) if len(shape) == 1 else PARTS
        lengths = dict.fromkeys(max(1, round(side * part)) for part in parts)
        masks += [whole & (index < length) for length in lengths if length < side]
        if side > 2:
            masks.append(whole & ((index < side // 3) | (index > side // 2)))
    masks.append((torch.arange(whole.numel()) % 3 != 1).view(shape))
    return torch.stack(masks)


def _add_nan(inputs: Inputs, name: str) -> None:
    """Missing values become NaN, as in data; in the last row NaN is all that tells that they are missing."""
    key = input_name(name, "valid")
    inputs[name] = inputs[name].masked_fill(~inputs[key], torch.nan)
    inputs[key] = torch.cat([inputs[key][:-1], torch.ones_like(inputs[key][-1:])])
