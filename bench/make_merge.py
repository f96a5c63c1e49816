"""Makes the checkpoints of the merge benchmark: a base and specialists of 1.08 GB each, bfloat16, random weights.

    python bench/make_merge.py DIR [--parents 4]
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("--parents", type=int, default=4)
arguments = parser.parse_args()

HIDDEN, LAYERS, FFN, VOCABULARY, HEADS, KV_HEADS, HEAD = 1024, 28, 3072, 182_000, 16, 8, 64
shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
for i in range(LAYERS):
    p = f"model.layers.{i}."
    shapes |= {
        p + "input_layernorm.weight": (HIDDEN,),
        p + "post_attention_layernorm.weight": (HIDDEN,),
        p + "self_attn.q_norm.weight": (HEAD,),
        p + "self_attn.k_norm.weight": (HEAD,),
        p + "self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        p + "self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        p + "self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        p + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        p + "mlp.gate_proj.weight": (FFN, HIDDEN),
        p + "mlp.up_proj.weight": (FFN, HIDDEN),
        p + "mlp.down_proj.weight": (HIDDEN, FFN),
    }
config = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": FFN,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "max_position_embeddings": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip

base = {}
for parent in range(arguments.parents + 1):
    generator = torch.Generator().manual_seed(parent)
    tensors = {}
    for name, shape in shapes.items():
        if parent == 0:
            base[name] = tensors[name] = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
        else:
            tensors[name] = (base[name].float() + torch.randn(shape, generator=generator) * 0.002).to(torch.bfloat16)
    directory = os.path.join(arguments.directory, "base" if parent == 0 else f"s{parent}")
    os.makedirs(directory, exist_ok=True)
    save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    print(directory)
