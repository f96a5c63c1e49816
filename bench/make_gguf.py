"""GGUF forms of the models of make_models.py, for llama.cpp: MiniLM and the decoder, each in f32, bf16 and q8_0.

    python bench/make_gguf.py MINILM_DIRECTORY MODELS
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

TYPES = {"float32": gguf.GGMLQuantizationType.F32, "bfloat16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"float32": gguf.LlamaFileType.ALL_F32, "bfloat16": gguf.LlamaFileType.MOSTLY_BF16, "int8": gguf.LlamaFileType.MOSTLY_Q8_0}

BERT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
BERT_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
QWEN3 = {"embed_tokens": "token_embd", "norm": "output_norm"}
QWEN3_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def renamed(name, top, layer, prefix):
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    if not module.startswith(prefix):
        return None
    index, _, rest = module[len(prefix):].partition(".")
    return f"blk.{index}.{layer[rest]}.{kind}"


def write(path, architecture, dtype, tensors, describe):
    writer = gguf.GGUFWriter(path, architecture)
    describe(writer)
    writer.add_file_type(FILE_TYPES[dtype])
    for name, values in tensors.items():
        values = values.astype(np.float32)
        # As llama.cpp's own conversion: vectors, positions and token types stay in f32.
        kind = TYPES["float32"] if values.ndim == 1 or name.startswith(("position_embd", "token_types")) else TYPES[dtype]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_sizes(w, config):
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])


def minilm(directory, out, dtype):
    config = json.loads((directory / "config.json").read_text())
    vocabulary = (directory / "vocab.txt").read_text().splitlines()
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    plain = lambda token: token in special or token.startswith("[unused")

    def describe(w):
        describe_sizes(w, config)
        w.add_layer_norm_eps(config["layer_norm_eps"])
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.MEAN)
        w.add_tokenizer_model("bert")
        w.add_token_list([t if plain(t) else t[2:] if t.startswith("##") else "\u2581" + t for t in vocabulary])
        w.add_token_types([gguf.TokenType.CONTROL if plain(t) else gguf.TokenType.NORMAL for t in vocabulary])
        w.add_token_type_count(config["type_vocab_size"])
        for name, token in (("bos", "[CLS]"), ("eos", "[SEP]"), ("sep", "[SEP]"), ("unk", "[UNK]"), ("pad", "[PAD]"), ("mask", "[MASK]")):
            getattr(w, f"add_{name}_token_id")(vocabulary.index(token))

    stored = {name.removeprefix("bert."): values for name, values in load_file(directory / "model.safetensors").items()}
    named = {renamed(name, BERT, BERT_LAYER, "encoder.layer."): values for name, values in stored.items()}
    named.pop(None, None)  # position_ids, pooler
    write(out / "minilm" / f"{dtype}.gguf", "bert", dtype, named, describe)


def decoder(out, dtype):
    directory = out / "decoder"
    config = json.loads((directory / "config.json").read_text())

    def describe(w):
        describe_sizes(w, config)
        w.add_head_count_kv(config["num_key_value_heads"])
        w.add_key_length(config["head_dim"])
        w.add_value_length(config["head_dim"])
        w.add_layer_norm_rms_eps(config["rms_norm_eps"])
        w.add_rope_freq_base(10000.0)
        w.add_pooling_type(gguf.PoolingType.LAST)
        # It has no tokenizer; llama.cpp wants one of this size.
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
        w.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
        w.add_token_merges(["t 0"])
        w.add_bos_token_id(0)
        w.add_eos_token_id(1)
        w.add_add_bos_token(False)
        w.add_add_eos_token(False)

    stored = load_file(directory / "model.safetensors")
    named = {renamed(name.removeprefix("model."), QWEN3, QWEN3_LAYER, "layers."): values for name, values in stored.items()}
    write(out / "decoder" / f"{dtype}.gguf", "qwen3", dtype, named, describe)


def main():
    directory, out = Path(sys.argv[1]), Path(sys.argv[2])
    for dtype in TYPES:
        minilm(directory, out, dtype)
        decoder(out, dtype)


main()
