// conan-nano's shape: a Qwen3-VL in small, and how it begins. Random as usual, but for two things that save an hour of training: tokens
// begin as the teacher's vectors of their texts, and the first layer begins by taking the mean of the tokens before it.
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { randomNumbers } from '../../lib/train/sampler'
import { type Tensor, writeCheckpoint } from './safetensors'
import { special } from './tokenizer'

export const text = { hidden: 256, layers: 6, heads: 8, keyHeads: 4, headSize: 64, inner: 640, vocabulary: 8192 }
export const vision = { hidden: 192, depth: 6, heads: 6, inner: 576, patch: 16, temporal: 2, merge: 2, positions: 256, deepstack: [2] }

export const audio = { hidden: 192, layers: 4, heads: 3, inner: 576, channels: 48, bins: 80, outputs: 192, projector: 256 }

function normal(seed: number): () => number {
  const random = randomNumbers(seed)
  return () => Math.sqrt(-2 * Math.log(random() || 1e-12)) * Math.cos(2 * Math.PI * random())
}

class Tensors {
  readonly all: Record<string, Tensor> = {}
  readonly gauss: () => number

  constructor(seed: number) {
    this.gauss = normal(seed)
  }

  put(name: string, shape: number[], value: (i: number) => number): void {
    const size = shape.reduce((a, b) => a * b, 1)
    this.all[name] = { shape, values: Float32Array.from({ length: size }, (_, i) => value(i)) }
  }

  random(name: string, shape: number[], scale = 0.02): void {
    this.put(name, shape, () => scale * this.gauss())
  }

  constant(name: string, size: number, value: number): void {
    this.put(name, [size], () => value)
  }

  linear(name: string, outputs: number, inputs: number): void {
    this.random(`${name}.weight`, [outputs, inputs])
    this.constant(`${name}.bias`, outputs, 0)
  }

  norm(name: string, size: number): void {
    this.constant(`${name}.weight`, size, 1)
    this.constant(`${name}.bias`, size, 0)
  }
}

const writeJson = (file: string, content: unknown) => writeFileSync(file, `${JSON.stringify(content, null, 1)}\n`)

/** A fresh encoder of sound: Qwen3-Omni's in small, for attachAudio. */
export function writeEncoder(directory: string, seed: number): void {
  mkdirSync(directory, { recursive: true })
  const tensors = new Tensors(seed)
  const { hidden: A, channels, inner, outputs, bins } = audio
  for (const [i, inputs] of [1, channels, channels].entries()) {
    tensors.random(`audio_tower.conv2d${i + 1}.weight`, [channels, inputs, 3, 3], Math.sqrt(2 / (9 * inputs)))
    tensors.constant(`audio_tower.conv2d${i + 1}.bias`, channels, 0)
  }
  tensors.random('audio_tower.conv_out.weight', [A, (channels * bins) / 8], 1 / Math.sqrt((channels * bins) / 8))
  for (let l = 0; l < audio.layers; l++) {
    const at = `audio_tower.layers.${l}.`
    for (const name of ['q_proj', 'k_proj', 'v_proj', 'out_proj']) tensors.linear(`${at}self_attn.${name}`, A, A)
    tensors.norm(`${at}self_attn_layer_norm`, A)
    tensors.linear(`${at}fc1`, inner, A)
    tensors.linear(`${at}fc2`, A, inner)
    tensors.norm(`${at}final_layer_norm`, A)
  }
  tensors.norm('audio_tower.ln_post', A)
  tensors.linear('audio_tower.proj1', A, A)
  tensors.linear('audio_tower.proj2', outputs, A)
  writeCheckpoint(path.join(directory, 'model.safetensors'), tensors.all)
  writeJson(path.join(directory, 'config.json'), {
    model_type: 'qwen3_omni_moe_audio_encoder',
    num_mel_bins: bins,
    d_model: A,
    encoder_layers: audio.layers,
    encoder_attention_heads: audio.heads,
    encoder_ffn_dim: inner,
    downsample_hidden_size: channels,
    output_dim: outputs,
    n_window: 50,
    n_window_infer: 400,
    activation_function: 'gelu',
    scale_embedding: false,
    max_source_positions: 1500,
  })
  writeJson(path.join(directory, 'preprocessor_config.json'), {
    feature_extractor_type: 'WhisperFeatureExtractor',
    feature_size: bins,
    sampling_rate: 16000,
    hop_length: 160,
    n_fft: 400,
    chunk_length: 30,
  })
}

export interface BaseOptions {
  seed?: number
  layers?: number
  pooling?: 'lasttoken' | 'mean'
}

/** A base directory. `tokens`: what the embedding of each token begins as, [hidden] each; undefined: random. */
export function writeBase(
  directory: string,
  tokenizer: string,
  tokens: (Float32Array | undefined)[],
  { seed = 0, layers = text.layers, pooling = 'lasttoken' }: BaseOptions = {},
): void {
  mkdirSync(path.join(directory, '1_Pooling'), { recursive: true })
  const tensors = new Tensors(seed)
  const { gauss } = tensors
  const C = text.hidden
  const [Q, KV] = [text.heads * text.headSize, text.keyHeads * text.headSize]
  const deep = 0.02 / Math.sqrt(2 * layers)

  tensors.put('model.language_model.embed_tokens.weight', [text.vocabulary, C], (i) => tokens[Math.floor(i / C)]?.[i % C] ?? 0.05 * gauss())
  for (let l = 0; l < layers; l++) {
    const at = `model.language_model.layers.${l}.`
    tensors.constant(`${at}input_layernorm.weight`, C, 1)
    tensors.random(`${at}self_attn.q_proj.weight`, [Q, C])
    tensors.random(`${at}self_attn.k_proj.weight`, [KV, C])
    tensors.constant(`${at}self_attn.q_norm.weight`, text.headSize, l ? 1 : 0.3)
    tensors.constant(`${at}self_attn.k_norm.weight`, text.headSize, l ? 1 : 0.3)
    const group = text.heads / text.keyHeads
    if (l === 0) {
      tensors.put(`${at}self_attn.v_proj.weight`, [KV, C], (i) => 0.02 * gauss() + (Math.floor(i / C) === i % C ? 1 : 0))
      // Head h hands back the channels that its key head took.
      tensors.put(`${at}self_attn.o_proj.weight`, [C, Q], (i) => {
        const [row, column] = [Math.floor(i / Q), i % Q]
        const [head, d] = [Math.floor(column / text.headSize), column % text.headSize]
        return deep * gauss() + (Math.floor(head / group) * text.headSize + d === row ? 0.5 / group : 0)
      })
    } else {
      tensors.random(`${at}self_attn.v_proj.weight`, [KV, C])
      tensors.random(`${at}self_attn.o_proj.weight`, [C, Q], deep)
    }
    tensors.constant(`${at}post_attention_layernorm.weight`, C, 1)
    tensors.random(`${at}mlp.gate_proj.weight`, [text.inner, C])
    tensors.random(`${at}mlp.up_proj.weight`, [text.inner, C])
    tensors.random(`${at}mlp.down_proj.weight`, [C, text.inner], deep)
  }
  tensors.constant('model.language_model.norm.weight', C, 1)

  const V = vision.hidden
  tensors.random('model.visual.patch_embed.proj.weight', [V, 3, vision.temporal, vision.patch, vision.patch])
  tensors.constant('model.visual.patch_embed.proj.bias', V, 0)
  tensors.random('model.visual.pos_embed.weight', [vision.positions, V])
  for (let b = 0; b < vision.depth; b++) {
    const at = `model.visual.blocks.${b}.`
    tensors.norm(`${at}norm1`, V)
    tensors.linear(`${at}attn.qkv`, 3 * V, V)
    tensors.linear(`${at}attn.proj`, V, V)
    tensors.norm(`${at}norm2`, V)
    tensors.linear(`${at}mlp.linear_fc1`, vision.inner, V)
    tensors.linear(`${at}mlp.linear_fc2`, V, vision.inner)
  }
  const merged = V * vision.merge ** 2
  for (const [at, size] of [['merger', V], ...vision.deepstack.map((_, i) => [`deepstack_merger_list.${i}`, merged])] as [string, number][]) {
    tensors.norm(`model.visual.${at}.norm`, size)
    tensors.linear(`model.visual.${at}.linear_fc1`, merged, merged)
    tensors.linear(`model.visual.${at}.linear_fc2`, C, merged)
  }
  writeCheckpoint(path.join(directory, 'model.safetensors'), tensors.all)

  const id = (token: (typeof special)[number]) => text.vocabulary - special.length + special.indexOf(token)
  const json = (file: string, content: unknown) => writeJson(path.join(directory, file), content)
  json('config.json', {
    architectures: ['Qwen3VLForConditionalGeneration'],
    model_type: 'qwen3_vl',
    dtype: 'float32',
    tie_word_embeddings: true,
    image_token_id: id('<|image_pad|>'),
    video_token_id: id('<|video_pad|>'),
    vision_start_token_id: id('<|vision_start|>'),
    vision_end_token_id: id('<|vision_end|>'),
    text_config: {
      model_type: 'qwen3_vl_text',
      vocab_size: text.vocabulary,
      hidden_size: C,
      intermediate_size: text.inner,
      num_hidden_layers: layers,
      num_attention_heads: text.heads,
      num_key_value_heads: text.keyHeads,
      head_dim: text.headSize,
      hidden_act: 'silu',
      attention_bias: false,
      rms_norm_eps: 1e-6,
      max_position_embeddings: 4096,
      rope_parameters: { rope_type: 'default', rope_theta: 10000, mrope_interleaved: true, mrope_section: [12, 10, 10] },
    },
    vision_config: {
      model_type: 'qwen3_vl_vision',
      depth: vision.depth,
      hidden_size: V,
      intermediate_size: vision.inner,
      num_heads: vision.heads,
      hidden_act: 'gelu_pytorch_tanh',
      in_channels: 3,
      patch_size: vision.patch,
      temporal_patch_size: vision.temporal,
      spatial_merge_size: vision.merge,
      num_position_embeddings: vision.positions,
      out_hidden_size: C,
      deepstack_visual_indexes: vision.deepstack,
    },
  })
  writeFileSync(path.join(directory, 'tokenizer.json'), tokenizer)
  json('tokenizer_config.json', { tokenizer_class: 'PreTrainedTokenizerFast', eos_token: '<|endoftext|>', pad_token: '<|endoftext|>', model_max_length: 1024 })
  const pictures = {
    patch_size: vision.patch,
    temporal_patch_size: vision.temporal,
    merge_size: vision.merge,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  }
  json('preprocessor_config.json', { ...pictures, size: { shortest_edge: 96 * 96, longest_edge: 512 * 512 } })
  json('video_preprocessor_config.json', {
    ...pictures,
    size: { shortest_edge: 2 * 96 * 96, longest_edge: 16 * 128 * 128 },
    fps: 2,
    min_frames: 4,
    max_frames: 16,
  })
  json('modules.json', [
    { idx: 0, name: '0', path: '', type: 'sentence_transformers.models.Transformer' },
    { idx: 1, name: '1', path: '1_Pooling', type: 'sentence_transformers.models.Pooling' },
    { idx: 2, name: '2', path: '2_Normalize', type: 'sentence_transformers.models.Normalize' },
  ])
  json('1_Pooling/config.json', { embedding_dimension: C, pooling_mode: pooling })
  json('sentence_bert_config.json', { max_seq_length: 1024, do_lower_case: false })
  json('config_sentence_transformers.json', { prompts: {}, default_prompt_name: null, similarity_fn_name: 'cosine' })
}
