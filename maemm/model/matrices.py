"""Which parameters of a model are hidden matrices: the weights of linear layers inside its blocks, from one hidden
state to another. Embeddings, heads, projections between parts, tokens, positions, norms and biases are not."""

from __future__ import annotations

from torch import nn

from maemm.model.repeated import repeated_blocks

STACKED = {"qkv": 3, "kv": 2}  # layers whose weight is several matrices, one below the other
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def hidden_matrices(model: nn.Module) -> dict[str, int]:
    """{parameter of ``model``: how many matrices stand one below the other in it} of all hidden matrices.

    Blocks are those of :func:`~maemm.model.repeated.repeated_blocks`, and any module that holds an attention, as a
    cross-attention that is there once: of such a module the layers of the attention and of what stands beside it.
    """
    inside: set[int] = set()
    for block in repeated_blocks(model):
        if not isinstance(block, nn.Sequential):
            inside |= {id(module) for module in block.modules() if module is not block}
    for module in model.modules():
        children = list(module.children())
        if any(_is_attention(child) for child in children):
            parts = [child for child in children if not isinstance(child, (nn.Linear, *_CONTAINERS))]
            inside |= {id(inner) for part in parts for inner in part.modules()}
    matrices: dict[str, int] = {}
    for name, module in model.named_modules():
        if id(module) not in inside:
            continue
        if isinstance(module, nn.Linear):
            matrices[f"{name}.weight"] = STACKED.get(name.rpartition(".")[2], 1)
        elif isinstance(module, nn.MultiheadAttention):
            matrices |= {f"{name}.in_proj_weight": 3} | {f"{name}.{key}_proj_weight": 1 for key in "qkv"}
    names = {name for name, _ in model.named_parameters()}  # a shared one under its first name alone
    return {name: count for name, count in matrices.items() if name in names}


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, _CONTAINERS):
        return False
    queries = (getattr(module, name, None) for name in ("qkv", "q"))
    return isinstance(module, nn.MultiheadAttention) or any(isinstance(layer, nn.Linear) for layer in queries)
