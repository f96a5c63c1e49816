"""Makes what the benchmarks need beside a MiniLM directory: ONNX forms of it (as exported, fused, int8 dynamic) and a
random decoder of Qwen3's shape (12 layers, 1024 wide, 16/8 heads of 64, MLP 3072) with its ONNX forms.

    python bench/make_models.py MINILM_DIRECTORY OUT
"""

import shutil
import sys
from pathlib import Path

import onnx
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer


class States(torch.nn.Module):
    """input_ids, attention_mask -> last_hidden_state"""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(model, out):
    out.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.randint(5, 200, (2, 16))
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=4096)
    torch.onnx.export(States(model), (ids, torch.ones_like(ids)), out, dynamo=True, input_names=["input_ids", "attention_mask"],
                      output_names=["last_hidden_state"], dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}), external_data=out.parent.name != "minilm")


def main():
    minilm, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    # transformers.js wants onnx/model.onnx beside the tokenizer files.
    js = out / "minilm"
    shutil.copytree(minilm, js, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    (js / "onnx").mkdir(exist_ok=True)
    model = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32, attn_implementation="eager").eval()
    export(model, out / "minilm" / "plain.onnx")
    shutil.copy(out / "minilm" / "plain.onnx", js / "onnx" / "model.onnx")
    fused = optimizer.optimize_model(str(out / "minilm" / "plain.onnx"), model_type="bert", num_heads=12, hidden_size=384)
    print("fused:", fused.get_fused_operator_statistics())
    fused.save_model_to_file(str(out / "minilm" / "fused.onnx"))
    quantize_dynamic(out / "minilm" / "plain.onnx", out / "minilm" / "int8.onnx", weight_type=QuantType.QInt8)
    shutil.copy(out / "minilm" / "int8.onnx", js / "onnx" / "model_quantized.onnx")

    directory = out / "decoder"
    config = transformers.Qwen3Config(vocab_size=2048, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8, head_dim=64,
                                      intermediate_size=3072, max_position_embeddings=4096, tie_word_embeddings=True)
    torch.manual_seed(0)
    decoder = transformers.Qwen3Model(config).eval()
    decoder.save_pretrained(directory)
    for dtype in ("bfloat16",):
        decoder.to(getattr(torch, dtype)).save_pretrained(out / f"decoder-{dtype}")
    decoder = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    decoder.config.use_cache = False
    export(decoder, directory / "plain.onnx")
    quantize_dynamic(directory / "plain.onnx", directory / "int8.onnx", weight_type=QuantType.QInt8, use_external_data_format=True)


main()
