"""Writes random models in the shape of a small Qwen3-VL for bench/media.mjs: a tower of 12 layers of 1024, a language model of 12
layers of 1024 (MLP 3072, 16/8 heads of 64), in float32 and bfloat16; and Qwen3-Omni's audio tower at 8 of its 32 layers.

    python bench/make_vision_model.py DIRECTORY PATH/qwen3-tokenizer
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import save_file
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

out, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
rope = dict(rope_type="default", rope_theta=5e6, mrope_section=[12, 10, 10], mrope_interleaved=True)
config = T.Qwen3VLConfig(
    text_config=dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8, head_dim=64, max_position_embeddings=32768, rope_parameters=rope),
    vision_config=dict(depth=12, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=1024, num_position_embeddings=2304, deepstack_visual_indexes=[2, 5, 8]),
    tie_word_embeddings=True)  # fmt: skip
model = T.Qwen3VLForConditionalGeneration(config)
template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
for name, dtype in (("vision", torch.float32), ("vision-bfloat16", torch.bfloat16)):
    place = out / name
    shutil.rmtree(place, ignore_errors=True)
    model.to(dtype).save_pretrained(place)
    for file in tokenizer.iterdir():
        if file.name != "chat_template.jinja":
            shutil.copy(file, place)
    (place / "chat_template.jinja").write_text(template)
    (place / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 1843200}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))  # fmt: skip

audio = Qwen3OmniMoeAudioEncoderConfig(encoder_layers=8, output_dim=2048)
tower = Qwen3OmniMoeAudioEncoder(audio)
place = out / "audio-tower"
shutil.rmtree(place, ignore_errors=True)
place.mkdir()
save_file({k: v.contiguous() for k, v in tower.state_dict().items() if "positional_embedding" not in k}, place / "model.safetensors")
(place / "config.json").write_text(json.dumps({k: v for k, v in audio.to_dict().items() if not k.startswith("_")}))
