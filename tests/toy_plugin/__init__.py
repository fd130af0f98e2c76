"""A tiny modality for tests of the core: 8 x 8 pictures of one channel, made up on the spot."""

from maemm.registry import Plugin

plugin = Plugin(
    name="toy",
    version="0.1.0",
    contract=2,
    summary="tiny made-up grids for tests",
    modalities={"toy": "parts:Toy"},
    sources={"toy": "parts:open_toys"},
    maskings={
        "four": "contract2:FourSets",
        "sizes": "contract2:TwoSizes",
        "budget": "contract2:JointBudget",
        "guided": "contract2:Guided",
    },
    targets={"average": "contract2:Teacher", "bright": "contract2:Codes", "levels": "contract2:Levels"},
    objectives={"coupled": "parts:Coupled", "adversary": "contract2:Adversary", "columns": "contract2:Columns"},
    trackers={"notes": "tracking:Notes", "not_here": "tracking:NotHere"},
)
