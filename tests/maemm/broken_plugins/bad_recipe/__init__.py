"""A plugin whose only recipe cannot be built: ``recipes_are_sound`` must catch it."""

from maemm.registry import Plugin

plugin = Plugin(
    name="breaks_recipes_are_sound",
    version="1",
    contract=2,
    summary="breaks recipes_are_sound",
    samples={"nothing": "parts:nothing"},
)
