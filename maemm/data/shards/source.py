"""Samples of shards, wherever they lie."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from maemm.config.paths import expanded
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import DataLost, MaemmError
from maemm.contract.options import NonNegative, PartOf, Positive
from maemm.contract.rng import Rng
from maemm.data.bad_samples import reason_of
from maemm.data.files import fingerprint
from maemm.data.shards import tar
from maemm.data.shards.as_files import Part, make_part, read_part
from maemm.data.shards.cache import Cache
from maemm.data.shards.catalog import INDEX, NO_LABEL, SEVERAL, Catalog, Place, expand
from maemm.data.shards.parquet import Parquet
from maemm.data.shards.storage import Range, Storage, is_url

_FIRST_S = 15.0  # for which a storage is asked again before anything of it was read
_AT_ONCE = 32  # samples that are fetched together
_BESIDE = ("cls", "json", "txt")  # endings that are no signal, unless a part asks for them


class Shards(Source):
    """The samples of a catalog, each the neighbouring members of a tar file.

    ``parts``: how members become modalities. ``cache``: where what is read from elsewhere is kept; None: nowhere.
    """

    def __init__(self, catalog: Catalog, parts: Sequence[Part], cache: Cache | None = None):
        self.catalog, self.parts, self.cache = catalog, tuple(parts), cache
        self.classes, self.multilabel = catalog.classes, catalog.multilabel
        self._due: list[int] = []  # samples that are read next, in order
        self._fetched: dict[int, bytes | Exception] = {}

    def __len__(self) -> int:
        return len(self.catalog)

    @property
    def shard_sizes(self) -> np.ndarray:
        return self.catalog.sizes

    def name(self, index: int) -> str:
        shard, number = self.catalog.shard_of(index)
        return f"{self.catalog.names[shard]}#{number}"

    def label(self, index: int) -> Label | None:
        label = self.catalog.label(index)
        if label == SEVERAL:
            return _labels_of(tar.members(self._bytes(index))[1])
        return None if label == NO_LABEL else label

    def read(self, index: int, rng: Rng) -> Sample:
        key, members = tar.members(self._bytes(index))
        raw: dict[str, Any] = {}
        for part in self.parts:
            if (ending := _ending_for(part, members, alone=len(self.parts) == 1)) is None:
                continue
            # As `paired` does for its parts, and a source alone does not.
            part_rng = rng if len(self.parts) == 1 else rng.fold_in(part.name)
            raw |= read_part(part, ending, members[ending], part_rng)
            if len(self.parts) == 1 and not key.endswith(f".{ending}"):
                key = f"{key}.{ending}"  # the name of the file that was packed
        if not raw:
            raise ValueError(f"its shard has only {', '.join(members)} of it; set data.source.parts.NAME.endings")
        label = self.catalog.label(index)
        if label == SEVERAL:
            return Sample(raw, key, _labels_of(members))
        return Sample(raw, key, None if label == NO_LABEL else label)

    def read_ahead(self, indices: Sequence[int]) -> None:
        self._due, self._fetched = [*indices], {}

    def files(self) -> Iterator[str]:
        if self.catalog.storage.is_local:
            yield from (self.catalog.storage.path(name) for name in self.catalog.names)

    def fingerprint(self) -> str:
        """Of all samples and labels, wherever the shards lie."""
        return fingerprint("shards", self.catalog.digest, [(part.kind, part.options) for part in self.parts])

    # ---- bytes
    def _bytes(self, index: int) -> bytes:
        """The members of a sample as they stand in its shard."""
        if index not in self._fetched:
            if index in self._due:
                del self._due[: self._due.index(index)]
                together, self._due = self._due[:_AT_ONCE], self._due[_AT_ONCE:]
            else:
                together = [index]
            self._fetched = dict(zip(together, self._fetch(together), strict=True))
        data = self._fetched.pop(index)
        if isinstance(data, Exception):
            raise data
        return data

    def _fetch(self, indices: Sequence[int]) -> list[bytes | Exception]:
        places = self.catalog.places(indices)
        ranges = [Range(self.catalog.names[place.shard], place.start, place.stop) for place in places]
        results: list[bytes | Exception | None] = [None] * len(places)
        if self.cache is not None:
            results = [self.cache.get(part, place.check) for part, place in zip(ranges, places, strict=True)]
        absent = [number for number, data in enumerate(results) if data is None]
        for number, data in zip(
            absent, self.catalog.storage.read_ranges([ranges[number] for number in absent]), strict=True
        ):
            checked = results[number] = self._checked(data, places[number])
            if self.cache is not None and isinstance(checked, bytes):
                self.cache.put(ranges[number], checked)
        return results  # type: ignore[return-value]

    def _checked(self, data: bytes | OSError, place: Place) -> bytes | Exception:
        """The bytes, or what is wrong with them. Raises :class:`DataLost` where the shard is not what was indexed."""
        if isinstance(data, bytes) and zlib.crc32(data) == place.check:
            return data
        name = self.catalog.names[place.shard]
        try:
            size, version = self.catalog.storage.info(name)
        except OSError as error:
            return ValueError(f"its shard cannot be read ({reason_of(error)})")
        expected = int(self.catalog.bytes[place.shard]), self.catalog.versions[place.shard]
        if size != expected[0] or (version and expected[1] and version != expected[1]):
            raise DataLost(
                f"a shard has changed since it was indexed ({self.catalog.storage.path(name)}: {size:,} bytes, "
                f"{expected[0]:,} then); make the index anew: maemm data index"
            )
        return data if isinstance(data, OSError) else ValueError("its bytes are damaged in the shard (checksum)")


def _ending_for(part: Part, members: Mapping[str, bytes], *, alone: bool) -> str | None:
    """The member that ``part`` reads; None: the sample has none."""
    if part.endings is not None:
        return next((ending for ending in part.endings if ending in members), None)
    own = next((ending for ending in members if ending.startswith(f"{part.name.lower()}.")), None)
    if own is not None or not alone:
        return own
    return next((ending for ending in members if ending not in _BESIDE), None)


def _labels_of(members: Mapping[str, bytes]) -> Label | None:
    """Labels of a sample that has several; None: it has no .cls."""
    text = members.get("cls")
    return None if text is None else tuple(int(word) for word in text.decode().split())


_PART = Annotated[dict[str, Any] | None, PartOf("sources", besides=("endings", "name"))]


def open_shards(
    root: str | None,
    list: str | None = None,
    *,
    name: str | None = None,
    source: Annotated[str | dict[str, Any] | None, PartOf("sources", besides=("endings",))] = None,
    parts: Annotated[dict[str, _PART], MinLen(1)] | None = None,
    index: str | None = None,
    cache: str | None = None,
    cache_gb: Positive = 50.0,
    retry_seconds: NonNegative = 300.0,
    storage: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    label: str | None = None,
) -> Source:
    """Samples of tar files in the layout of WebDataset, or of Parquet files, on a disk, a web server or object storage.

    ``data.root`` is the folder or URL that holds them (``https://``, ``s3://``, ``gs://``, ``hf://``), with the index
    that ``maemm data pack --as shards`` writes beside them, or ``maemm data index``. Members are read by the sources of
    the plugins, as if each were a file in a folder. Raises :class:`MaemmError` where there is no index.

    Options
        name: the modality that the samples are for; null: that of the recipe, if it has one
        source: the source that reads a member, a name or {type, endings, options}; null: that of the modality's type
        parts: of several modalities, {NAME: {type (default: NAME), endings, options}}; members are KEY.NAME.ending, or
            have one of ``endings``; null: as the shards were packed
        index: folder or URL of the index; null: beside the shards
        cache: folder that keeps what was read from elsewhere; null: none
        cache_gb: GB that the cache may take
        retry_seconds: how long a storage that does not answer is asked again; then the run ends
        storage: options of the storage, such as {endpoint_url: ..., key: ..., secret: ...} of S3
        columns: of Parquet, {modality: column}; null: the column with its name, or the only one that is no label
        label: of Parquet, the column of labels; null: the first of label, labels, class, target, fine_label, category
    """
    if list is not None:
        raise MaemmError("shards have no data.list; give their folder or URL as data.root")
    if not root:
        raise MaemmError("no shards are given; set data.root to the folder or URL that holds them")
    first = min(retry_seconds, _FIRST_S)  # a wrong name should not be asked for as long as a server that was there
    holder = Storage(root, options=storage, patience=first)
    index_at = None if index is None else Storage(index, options=storage if is_url(index) else None, patience=first)
    if files := _parquet_files(holder):
        rows = Parquet(holder, files, _parts(name, source, parts, {}), columns or {}, label)
        holder.patience = retry_seconds
        return rows
    if columns is not None or label is not None:
        raise MaemmError("columns and label are for Parquet files (data.source); labels of tar files are their .cls")
    catalog = _catalog(holder, index_at)
    holder.patience = (index_at or holder).patience = retry_seconds
    kept = None if cache is None else Cache(expanded(cache), int(cache_gb * 1e9), catalog.digest)
    return Shards(catalog, _parts(name, source, parts, catalog.parts), kept)


def _catalog(storage: Storage, index_at: Storage | None) -> Catalog:
    if not (index_at or storage).exists(INDEX):
        where = (index_at or storage).root
        local = storage.is_local and os.path.isfile(storage.root)
        advice = "give the folder that holds it" if local else f"make it: maemm data index {storage.root}"
        raise MaemmError(f"there is no index of shards ({where}/{INDEX}); {advice}")
    return Catalog(storage, index_at)


def _parquet_files(storage: Storage) -> list[str]:
    """The Parquet files that ``data.root`` names: one, those of a pattern, or all of a folder without an index."""
    if storage.root.endswith(".parquet"):
        storage.root, _, pattern = storage.root.rpartition("/")
        return storage.find(pattern) if "*" in pattern else [*expand(pattern)]
    return [] if not storage.is_local or storage.exists(INDEX) else storage.find("**/*.parquet")


def _parts(
    name: str | None, source: Any, parts: Mapping[str, Any] | None, packed: Mapping[str, Mapping[str, Any]]
) -> Sequence[Part]:
    """How members are read: as the recipe says, else as the shards were ``packed``."""
    if source is not None and parts is not None:
        raise MaemmError("data.source.source is for one modality, data.source.parts for several; leave one out")
    if parts is not None:
        return [make_part(key, spec or {}, f"data.source.parts.{key}") for key, spec in parts.items()]
    if source is None and packed:
        if name is not None and len(packed) == 1:
            ((old, spec),) = packed.items()
            return [make_part(name, {"type": old, **spec, "endings": spec.get("endings")}, "index of the shards")]
        return [make_part(key, spec, "index of the shards") for key, spec in packed.items()]
    if name is None:
        raise MaemmError(
            "the recipe has several modalities; set data.source.parts to {MODALITY: {endings: [...]}, ...}"
        )
    return [make_part(name, source or {}, "data.source.source")]
