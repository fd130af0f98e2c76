"""Published layouts of weights: how they are read, and how a model is written in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from maemm.contract.data import Model
from maemm.contract.errors import MaemmError


@dataclass(frozen=True)
class ExportedState:
    """A model in the layout of another library, and how that library loads it.

    ``run`` loads it there: path -> a function from x (B, ...), as preprocessed, to the output. It raises ImportError
    where the library is not installed.
    """

    state: Mapping[str, Tensor]  # under the library's names
    call: str  # Python code that loads it there; {path} is replaced by the file or folder
    answers: str  # output of ``run``: "features" as Model.embed (B, D), "tokens" (B, N, D), or "logits"
    run: Callable[[str], Callable[[Tensor], Tensor]]
    config: Mapping[str, Any] | None = None  # config.json of a folder with model.safetensors; None: a single file


class CheckpointFormat(ABC):
    """A published checkpoint layout, by which weights of other code are read and written."""

    name: str
    library: str | None = None  # the library whose own layout this is: ``maemm export --to LIBRARY`` writes it

    @abstractmethod
    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a state dict has this layout. Prefixes of wrappers (``module.``) are already removed."""

    @abstractmethod
    def read(
        self, state: dict[str, Tensor], *args: Any, **settings: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """State dict -> (recipe, state dict of our model, tensors that have no place there but are written back).

        Write ``settings``, what the weights do not record (``heads``, ``norm_pix``, ...), as keyword-only parameters:
        they are checked like options. ``args`` is always empty.
        """

    @abstractmethod
    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our model, and the tensors that :meth:`read` set apart -> state dict under the published names."""

    def entries(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """What a file of ``torch.save`` holds for what :meth:`write` returned. By default one entry, ``model``."""
        return {"model": state}

    def exported_state(self, model: Model) -> ExportedState:
        """Our model for the library. Raises :class:`MaemmError` for what the layout cannot hold."""
        raise MaemmError(f"layout {self.name!r} belongs to no library; use maemm convert --to {self.name}")

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The ``settings`` of :meth:`read` from the config.json beside weights in this layout.

        It is called before :meth:`read`, and raises :class:`MaemmError` for a setting that makes another model. Layouts
        without this method are read without a config.json.
        """
        return {}
