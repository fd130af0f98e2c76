"""A masking, an encoder, a decoder, an objective and a checkpoint format."""

import math

import torch
from torch import nn
from torch.nn import functional

from maemm.contract import CheckpointFormat, Decoder, Encoder, Latents, Objective, PerModalityMasking, Term
from maemm.contract.options import Depth, Fraction, NonNegative, PositiveInt
from maemm.model.masking.counts import noise_order, plan_from_order
from maemm.model.pooling import mean_of_tokens


class Places(PerModalityMasking):
    """Hide the same places at all hours.

    Options
        ratio: share of the tokens that is hidden
    """

    def __init__(self, *, ratio: Fraction = 0.5):
        self.ratio = ratio

    def plan(self, name, tokens, rng):
        noise = rng.uniform(f"mask/{name}", math.prod(tokens.grid[1:]), device=tokens.values.device)
        order = noise_order(noise.repeat(1, tokens.grid[0]), tokens)
        return plan_from_order(order, tokens, self.ratio, "floor_visible")


class DeepSets(Encoder):
    """Each token beside the mean of all (Zaheer et al. 2017).

    Options
        dim: width
        depth: blocks
    """

    def __init__(self, names, *, dim: PositiveInt = 64, depth: Depth = 2):
        super().__init__()
        self.dim, self.norm = dim, nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU()) for _ in range(depth))

    def forward(self, inputs, modalities, *, layers=(), norm=True):
        found = {name: modalities[name].embed(one.tokens, one.plan.visible) for name, one in inputs.items()}
        for name, one in inputs.items():
            place = modalities[name].position(one.tokens, one.plan.visible, "encoder")
            x = found[name] + place.to(found[name])
            for block in self.blocks:
                x = x + block(torch.cat([x, mean_of_tokens(x, [one.plan])[:, None].expand_as(x)], -1))
            found[name] = self.norm(x) if norm else x
        return Latents(found)


class Pointwise(Decoder):
    """Predict a token from its place and the mean of the latents.

    Options
        dim: width
    """

    def __init__(self, outputs, encoder_dim, prefix_count, *, dim: PositiveInt = 64):
        super().__init__()
        self.dim, self.mean = dim, nn.Linear(encoder_dim, dim)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, size))
                for name, size in outputs.items()
            }
        )

    def forward(self, latents, inputs, modalities):
        found = {}
        for name, one in inputs.items():
            mean = self.mean(mean_of_tokens(latents.tokens[name], [one.plan]))[:, None]
            place = modalities[name].position(one.tokens, one.plan.predict, "decoder")
            found[name] = self.heads[name](mean + place.to(mean))
        return found


class Evenness(Objective):
    """Spread samples over the sphere (Wang and Isola 2020, equation 2 with t = 2).

    Options
        weight: in the loss
    """

    coupled = True

    def __init__(self, name, *, weight: NonNegative = 0.1):
        super().__init__()
        self.name, self.weight = name, weight

    def forward(self, out, model):
        means = [mean_of_tokens(out.encoded[name].float(), [plan]) for name, plan in out.plans.items()]
        near = torch.pdist(functional.normalize(torch.cat(means), dim=-1)).square().mul(-2).exp().mean().log()
        count = self.counts(out.plans)[self.name]
        return {self.name: Term(near * count, count, self.weight)}

    def counts(self, plans):
        return {self.name: sum(plan.counted.new_tensor(float(len(plan.counted))) for plan in plans.values())}


class Old(CheckpointFormat):
    """Files of an older program: our tensors below ``net.``, sizes as their shapes say."""

    name = "weather_old"

    def match(self, keys, shapes):
        return {"net.encoder.norm.weight", "net.decoder.mean.weight", "net.encoder.blocks.0.0.weight"} <= keys

    def read(self, state):
        depth = len({key.split(".")[3] for key in state if key.startswith("net.encoder.blocks.")})
        recipe = {
            "modalities": {"weather": {"type": "weather", "masking": {"type": "places", "ratio": 0.5}}},
            "encoder": {"type": "deepsets", "dim": len(state["net.encoder.norm.weight"]), "depth": depth},
            "decoder": {"type": "pointwise", "dim": len(state["net.decoder.mean.weight"])},
        }
        return recipe, {key.removeprefix("net."): value for key, value in state.items()}, {}

    def write(self, model, extras):
        return {f"net.{key}": value for key, value in model.state_dict().items()}
