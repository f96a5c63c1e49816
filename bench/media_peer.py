"""The peer of bench/media.ts: reads JSON lines {op, files}, answers with the seconds of each stage.

    python media_peer.py MODEL AUDIO_TOWER DTYPE THREADS
"""

import json
import sys
import time
from pathlib import Path

import librosa
import soundfile
import torch
import transformers as T
from PIL import Image
from safetensors.torch import load_file
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

directory, tower_directory, dtype, threads = sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)
model = T.Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").eval().model
processor = T.AutoImageProcessor.from_pretrained(directory)
config = Qwen3OmniMoeAudioEncoderConfig(**{k: v for k, v in json.loads((tower_directory / "config.json").read_text()).items() if k != "model_type"})
config._attn_implementation = "sdpa"
tower = Qwen3OmniMoeAudioEncoder(config).eval()
tower.load_state_dict(load_file(tower_directory / "model.safetensors"), strict=False)
tower = tower.to(dtype)
extractor = T.WhisperFeatureExtractor(feature_size=128)


def images(files):
    seconds = dict(decode=0.0, resize=0.0, tower=0.0, backbone=0.0)
    for file in files:
        a = time.perf_counter()
        image = Image.open(file).convert("RGB")
        b = time.perf_counter()
        result = processor(images=[image], return_tensors="pt")
        c = time.perf_counter()
        grid = result["image_grid_thw"]
        model.visual(result["pixel_values"].to(dtype), grid_thw=grid)
        d = time.perf_counter()
        n = int(grid.prod()) // 4 + 30
        model.language_model(input_ids=torch.full((1, n), 5), use_cache=False)
        e = time.perf_counter()
        for key, value in zip(seconds, (b - a, c - b, d - c, e - d)):
            seconds[key] += value
    return seconds | dict(total=sum(seconds.values()))


def sounds(files):
    seconds = dict(decode=0.0, resample=0.0, mel=0.0, tower=0.0)
    for file in files:
        a = time.perf_counter()
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        samples = samples.mean(1)
        b = time.perf_counter()
        heard = librosa.resample(samples, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
        c = time.perf_counter()
        features = extractor(heard, sampling_rate=16000, padding=False, truncation=False, return_tensors="pt")["input_features"][0]
        d = time.perf_counter()
        tower(features.to(dtype), feature_lens=torch.tensor([features.shape[1]]))
        e = time.perf_counter()
        for key, value in zip(seconds, (b - a, c - b, d - c, e - d)):
            seconds[key] += value
    return seconds


for line in sys.stdin:
    request = json.loads(line)
    answer = {} if request["op"] == "ready" else dict(images=images, sounds=sounds)[request["op"]](request["files"])
    print(json.dumps(answer), flush=True)
