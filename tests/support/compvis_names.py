"""Tiny models of diffusers under the names of CompVis' and Stability's code: the inverse of what is under test, by hand."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_EDGES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MLP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn"}


def unet(network: Any, before: str = "model.diffusion_model.") -> State:
    """A UNet2DConditionModel; each of its levels has ``layers_per_block`` layers and what halves or doubles the size."""
    layers = network.config.layers_per_block
    attended = [bool(getattr(block, "attentions", None)) for block in network.up_blocks]

    def named(name: str) -> str:
        for ours, theirs in _EDGES.items():
            if name.startswith(f"{ours}."):
                return name.replace(ours, theirs, 1)
        side, tail = name.partition("_")[0], name.partition(".")[2]
        if side == "mid":
            kind, number, inner = tail.split(".", 2)
            place = "1" if kind == "attentions" else str(2 * int(number))
            return f"middle_block.{place}.{_inner(kind, inner)}"
        block, kind, number, inner = tail.split(".", 3)
        if side == "down":
            first = 1 + int(block) * (layers + 1)
            if kind == "downsamplers":
                return f"input_blocks.{first + layers}.0.op.{inner.removeprefix('conv.')}"
            return f"input_blocks.{first + int(number)}.{int(kind == 'attentions')}.{_inner(kind, inner)}"
        first = int(block) * (layers + 1)
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{1 + attended[int(block)]}.{inner}"
        return f"output_blocks.{first + int(number)}.{int(kind == 'attentions')}.{_inner(kind, inner)}"

    return {before + named(name): tensor for name, tensor in network.state_dict().items()}


def _inner(kind: str, name: str) -> str:
    if kind == "attentions":
        return name
    head, _, tail = name.partition(".")
    return f"{_RESNET[head]}.{tail}"


def vae(network: Any) -> State:
    """An AutoencoderKL, whose attention is written as convolutions."""
    last = len(network.config.block_out_channels) - 1
    found = {}
    for name, tensor in network.state_dict().items():
        renamed = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed = renamed.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        renamed = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", renamed)
        renamed = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", renamed)
        renamed = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{last - int(match[1])}.block", renamed)
        renamed = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", renamed)
        if "mid_block.attentions.0" in renamed:
            renamed = renamed.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            renamed = renamed.replace("to_out.0", "proj_out")
            renamed = re.sub(r"to_([qkv])\.", r"\1.", renamed)
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        found[f"first_stage_model.{renamed}"] = tensor
    return found


def clip(network: Any, before: str = "cond_stage_model.transformer.") -> State:
    """A CLIPTextModel, which then was inside of another module."""
    names = network.state_dict()
    return {before + "text_model." + name.removeprefix("text_model."): tensor for name, tensor in names.items()}


def open_clip(network: Any, before: str) -> State:
    """A CLIPTextModel, with a projection or without, as open_clip writes it: queries, keys and values in one matrix."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    found = {"logit_scale": torch.zeros(())}
    for name, tensor in plain.items():
        if name.startswith("encoder.layers."):
            renamed = name.replace("encoder.layers.", "transformer.resblocks.")
            for ours, theirs in _MLP.items():
                renamed = renamed.replace(ours, theirs)
            if match := re.fullmatch(r"(.*\.attn)\.q_proj\.(weight|bias)", renamed):
                three = [plain[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
                found[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(three)
            elif not re.search(r"\.[kv]_proj\.", renamed):
                found[renamed] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T
        else:
            renamed = name.replace("embeddings.position_embedding.weight", "positional_embedding")
            renamed = renamed.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
            found[renamed] = tensor
    return {before + name: tensor.contiguous() for name, tensor in found.items()}
