// attachAudio(): a backbone, an encoder of sound and a projector become one model directory, the omni checkpoint. It stays an ordinary
// Hugging Face directory whose backbone transformers loads; the encoder's tensors are called audio_tower.*, the projector's
// audio_projector.*, and four tokens stand for sound.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { type Json, readJson, readJsonIf } from '../files/json'
import { asFileError, publish, requireFree } from '../files/output'
import { bytesOf, copyFiles, writeIndex } from '../fuse/fuse'
import { runPlan } from '../fuse/native'
import { type CheckpointTensor, checkpointTensors, openParent, type Parent, sizeOf, textConfig, weightsFolder } from '../fuse/parents'
import { elementBytes, shards } from '../fuse/plan'
import { isVocabularyTensor, readVocabulary } from '../fuse/vocabulary'
import { oneOf, pathOf, positive, requireOptions, wholeNumber } from '../options'

export interface AttachAudioOptions {
  /** Directory to make; it must not exist, or be empty. */
  out: string
  /** A directory with a projector's safetensors; default: a fresh one, as torch.nn.Linear begins. */
  projector?: string
  /** Width between the fresh projector's two layers; default: the mean of its two ends, which are 2048 and 4096 in the paper. */
  hiddenSize?: number
  /** Its activation; default 'gelu'. */
  hiddenAct?: 'gelu' | 'gelu_pytorch_tanh' | 'relu' | 'silu'
  /** Default true. */
  bias?: boolean
  /** Of the fresh projector; default 0. */
  seed?: number
  /** Type of the projector's tensors; default: the backbone's. Other tensors stay as they are stored. */
  dtype?: 'float32' | 'bfloat16' | 'float16'
  /** Largest weight file, in bytes or as "5GB"; default "5GB". */
  outShardSize?: number | string
  /** Plan and check everything, write nothing. */
  dryRun?: boolean
  signal?: AbortSignal
  onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void
}

export interface AttachAudioReport {
  directory: string
  encoder: { modelType: string; tensors: number; parameters: number; outputs: number }
  projector: { inputSize: number; hiddenSize: number; outputSize: number; hiddenAct: string; bias: boolean; fresh: boolean; parameters: number }
  /** Ids of the tokens, and whether they were added to the vocabulary; rows by which the embeddings grew. */
  tokens: Record<string, number>
  addedTokens: string[]
  addedRows: number
}

const startToken = '<|audio_start|>'
const endToken = '<|audio_end|>'
const featureToken = '<|AUDIO|>'
const soundTokens = [startToken, endToken, '<|audio_pad|>', featureToken]

/** A tensor of the output for native/merge/fuse.h. */
interface Planned {
  name: string
  shape: number[]
  dtype: string
  algorithm: 'copy' | 'uniform'
  options: Record<string, number>
  parents: unknown[]
}

/** The encoder's own part of its directory's config.json. */
function encoderConfig(parent: Parent): Json {
  const { config } = parent
  const thinker = config.thinker_config as Json | undefined
  return ((thinker?.audio_config ?? config.audio_config) as Json | undefined) ?? config
}

/** Per encoder: a tensor only it has, and the channels of its features. */
const encoders: Record<string, { probe: string; outputs: string }> = {
  whisper: { probe: 'conv1.weight', outputs: 'd_model' },
  whisper_encoder: { probe: 'conv1.weight', outputs: 'd_model' },
  qwen3_omni_moe_audio_encoder: { probe: 'conv2d1.weight', outputs: 'output_dim' },
}

function named(parent: Parent, probe: string): string {
  const found = [...parent.tensors.keys()].filter((name) => name === probe || name.endsWith(`.${probe}`))
  if (found.length !== 1)
    throw new ConanError(
      'TENSOR_MISSING',
      `${parent.directory}: expected one tensor "${probe}" (any prefix), found ${found.length ? found.join(' and ') : 'none'}`,
    )
  return (found[0] as string).slice(0, -probe.length)
}

/** tokenizer.json with the four tokens, and their ids. */
function extendTokenizer(file: string): { text: string; ids: Record<string, number>; added: string[] } {
  const tokenizer = readJson(file) as Json & { added_tokens?: { id: number; content: string }[]; model?: { vocab?: Record<string, number> | unknown[] } }
  const vocab = tokenizer.model?.vocab ?? {}
  const known = new Map<string, number>(Array.isArray(vocab) ? vocab.map((entry, id) => [String((entry as unknown[])[0]), id]) : Object.entries(vocab))
  tokenizer.added_tokens ??= []
  for (const { content, id } of tokenizer.added_tokens) known.set(content, id)
  let next = [...known.values()].reduce((most, id) => Math.max(most, id), -1) + 1
  const ids: Record<string, number> = {}
  const added: string[] = []
  for (const content of soundTokens) {
    const there = known.get(content)
    ids[content] = there ?? next++
    if (there !== undefined) continue
    tokenizer.added_tokens.push({
      id: ids[content] as number,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    } as never)
    added.push(content)
  }
  return { text: `${JSON.stringify(tokenizer, null, 2)}\n`, ids, added }
}

/** A chat template that knows images, taught sounds: a branch before that for images, wherever there is one. */
export function templateWithAudio(template: string, where: string): string {
  if (template.includes(featureToken)) return template
  const branch = /\{%(-?)\s*if\s+([\w.[\]'"]+?)(\.type|\['type'\]|\["type"\])\s*==\s*(['"])image\4/g
  const taught = template.replace(
    branch,
    (whole, dash, part, type) =>
      `{%${dash} if ${part}${type} == 'audio' %}${startToken}${featureToken}${endToken}{%${dash} el${whole.replace(/^\{%-?\s*/, '')}`,
  )
  if (taught === template)
    throw new ConanError(
      'CONFIG_INVALID',
      `${where}: expected a chat template with a branch such as {% if content.type == 'image' %}, found none; teach it ${featureToken} by hand`,
    )
  return taught
}

/** What the output's embeddings are made of where the new tokens have no rows yet: a new row is the mean of rows spread over the old ones. */
function grown(checkpoint: number, tensor: CheckpointTensor, rows: number): unknown {
  const old = tensor.shape[0] as number
  const ref = { checkpoint, tensor: tensor.name }
  const spread = Math.min(old, 64)
  const mean = Array.from({ length: spread }, (_, i) => [ref, Math.floor((i * old) / spread)])
  return { shape: [rows, ...tensor.shape.slice(1)], runs: [[old, [[ref, 0]]], ...Array.from({ length: rows - old }, () => [1, mean])] }
}

/** @throws ConanError CONFIG_INVALID where config.json has something else than a size there */
function size({ directory }: Parent, key: string, value: unknown): number {
  if (!Number.isInteger(value) || (value as number) < 1)
    throw new ConanError('CONFIG_INVALID', `${directory}: "${key}": expected a positive whole number, got ${shown(value)}`)
  return value as number
}

/**
 * Builds the omni checkpoint from a backbone's directory (Qwen3-VL, or a text model such as Qwen3 or BERT) and an encoder's (a
 * Whisper, or the audio tower of Qwen3-Omni, alone or inside its model).
 *
 * @throws ConanError MODEL_NOT_FOUND, CONFIG_INVALID, TENSOR_MISSING, TOKENIZER_INVALID, OUTPUT_EXISTS, FILE_IO, ABORTED
 */
export async function attachAudio(model: string, encoder: string, options: AttachAudioOptions): Promise<AttachAudioReport> {
  requireOptions(options)
  const seed = wholeNumber(options.seed, 'seed', 0)
  const out = path.resolve(pathOf(options.out, 'out'))
  const backbone = openParent(model, '.')
  const tower = openParent(encoder, '.')
  if (backbone.config.audio_config) throw new ConanError('CONFIG_INVALID', `${backbone.directory}: expected a model without sound, found an audio_config`)
  const audioConfig = encoderConfig(tower)
  const modelType = String(audioConfig.model_type)
  const kind = Object.hasOwn(encoders, modelType) ? encoders[modelType]! : undefined
  if (!kind)
    throw new ConanError(
      'UNSUPPORTED_ARCHITECTURE',
      `${tower.directory}: "model_type": expected one of ${Object.keys(encoders).join(', ')}, got ${shown(audioConfig.model_type)}`,
    )
  const text = textConfig(backbone.config)
  const outputs = size(tower, kind.outputs, audioConfig[kind.outputs])
  const hidden = size(backbone, 'hidden_size', text.hidden_size ?? text.n_embd ?? text.dim)

  // The tensors: those of the backbone, of the encoder under another name, and the projector's.
  const prefix = named(tower, kind.probe)
  const vocabulary = readVocabulary(backbone)
  if (!vocabulary) throw new ConanError('TOKENIZER_INVALID', `${backbone.directory}: expected tokenizer.json, found none`)
  const tokenizerFile = [backbone.directory, backbone.root].map((directory) => path.join(directory, 'tokenizer.json')).find(existsSync) as string
  const tokenizer = extendTokenizer(tokenizerFile)
  const oldRows = size(backbone, 'vocab_size', text.vocab_size)
  const rows = Math.max(oldRows, ...Object.values(tokenizer.ids).map((id) => id + 1))
  const copy = (name: string, { shape, dtype }: { shape: number[]; dtype: string }, ref: unknown): Planned => ({
    name,
    shape,
    dtype,
    algorithm: 'copy',
    options: {},
    parents: [ref],
  })
  const tensors: Planned[] = [...backbone.tensors.values()].map((tensor) => {
    const ref = { checkpoint: 0, tensor: tensor.name }
    if (rows === oldRows || !isVocabularyTensor(backbone, tensor.name)) return copy(tensor.name, tensor, ref)
    return copy(tensor.name, { ...tensor, shape: [rows, ...tensor.shape.slice(1)] }, grown(0, tensor, rows))
  })
  const own = [...tower.tensors.values()].filter(({ name }) => name.startsWith(prefix))
  for (const tensor of own) tensors.push(copy(`audio_tower.${tensor.name.slice(prefix.length)}`, tensor, { checkpoint: 1, tensor: tensor.name }))
  const main = [...backbone.tensors.values()].reduce((a, b) => (sizeOf(b.shape) > sizeOf(a.shape) ? b : a)).dtype
  const dtype = oneOf(options.dtype, 'dtype', ['float32', 'bfloat16', 'float16'] as const, main as 'float32')
  const projector = plannedProjector(options, { outputs, hidden, dtype })
  tensors.push(...projector.tensors)

  const taken = new Set<string>()
  for (const { name } of tensors) {
    if (taken.has(name)) throw new ConanError('CONFIG_INVALID', `${backbone.directory}: tensor "${name}" stands in the way of the encoder's`)
    taken.add(name)
  }
  const parameters = (some: { shape: number[] }[]) => some.reduce((sum, { shape }) => sum + sizeOf(shape), 0)
  const report: AttachAudioReport = {
    directory: out,
    encoder: { modelType, tensors: own.length, parameters: parameters(own), outputs },
    projector: { ...projector.sizes, fresh: options.projector === undefined, parameters: parameters(projector.tensors) },
    tokens: tokenizer.ids,
    addedTokens: tokenizer.added,
    addedRows: rows - oldRows,
  }
  const template = taughtTemplate(backbone)
  requireFree(out)
  if (options.dryRun) return report

  // Larger elements first: then every tensor lies aligned.
  const ordered = [...tensors].sort((a, b) => elementBytes(b) - elementBytes(a))
  const { files, totalBytes } = shards(ordered, bytesOf(options.outShardSize ?? '5GB'))
  const partial = `${out}.partial`
  const weights = weightsFolder(backbone.root)
  const place = path.join(partial, weights)
  try {
    rmSync(partial, { recursive: true, force: true })
    mkdirSync(place, { recursive: true })
    const directories = [backbone.directory, tower.directory, ...(projector.directory === undefined ? [] : [projector.directory])]
    const plan = {
      output: place,
      identity: 'attach-audio',
      threads: 0,
      seed,
      checkpoints: directories.map((directory) => ({ directory, adapters: [] })),
      files: files.map(({ name, tensors }) => ({ name, tensors })),
      tensors: ordered,
    }
    await runPlan('fuse', plan, { signal: options.signal, onProgress: (doneBytes, totalBytes) => options.onProgress?.({ doneBytes, totalBytes }) })
    for (const name of readdirSync(place)) if (!files.some((file) => file.name === name)) rmSync(path.join(place, name), { recursive: true })
    writeIndex({ files, tensors: ordered, totalBytes }, place)
    copyFiles(backbone.root, partial, model, weights)
    writeFileSync(path.join(place, 'tokenizer.json'), tokenizer.text)
    extendTokenizerConfig(path.join(place, 'tokenizer_config.json'), tokenizer)
    if (template !== undefined) writeFileSync(path.join(place, 'chat_template.jinja'), template)
    writeFileSync(path.join(place, 'config.json'), `${JSON.stringify(omniConfig(backbone, audioConfig, projector.sizes, tokenizer.ids, rows), null, 2)}\n`)
    writeFileSync(path.join(place, 'audio_preprocessor_config.json'), `${JSON.stringify(audioPreprocessor(tower, audioConfig), null, 2)}\n`)
    publish(partial, out)
  } catch (error) {
    rmSync(partial, { recursive: true, force: true })
    throw asFileError(error)
  }
  return report
}

interface ProjectorSizes {
  inputSize: number
  hiddenSize: number
  outputSize: number
  hiddenAct: string
  bias: boolean
}

function plannedProjector(
  options: AttachAudioOptions,
  { outputs, hidden, dtype }: { outputs: number; hidden: number; dtype: string },
): { tensors: Planned[]; sizes: ProjectorSizes; directory?: string } {
  const hiddenAct = oneOf(options.hiddenAct, 'hiddenAct', ['gelu', 'gelu_pytorch_tanh', 'relu', 'silu'] as const, 'gelu')
  if (options.projector === undefined) {
    const hiddenSize = positive(options.hiddenSize, 'hiddenSize', Math.round((outputs + hidden) / 2))
    const bias = options.bias ?? true
    const sizes = { inputSize: outputs, hiddenSize, outputSize: hidden, hiddenAct, bias }
    const fresh = (name: string, shape: number[], inputs: number): Planned => ({
      name: `audio_projector.${name}`,
      shape,
      dtype,
      algorithm: 'uniform',
      options: { bound: 1 / Math.sqrt(inputs) },
      parents: [],
    })
    const tensors = [fresh('linear_1.weight', [hiddenSize, outputs], outputs), fresh('linear_2.weight', [hidden, hiddenSize], hiddenSize)]
    if (bias) tensors.push(fresh('linear_1.bias', [hiddenSize], outputs), fresh('linear_2.bias', [hidden], hiddenSize))
    return { tensors, sizes }
  }
  // A projector alone has no config.json of its own: its shapes say all but the activation, and whose it is if it came from a model.
  const directory = path.resolve(pathOf(options.projector, 'projector'))
  const config = readJsonIf(path.join(directory, 'config.json'))
  const known = (config.audio_projector_config ?? config) as Json
  const parent = openProjector(directory)
  const prefix = named(parent, 'linear_1.weight')
  const tensors = [...parent.tensors.values()]
    .filter(({ name }) => name.startsWith(prefix) && /^linear_[12]\.(weight|bias)$/.test(name.slice(prefix.length)))
    .map(
      ({ name, shape, dtype }): Planned => ({
        name: `audio_projector.${name.slice(prefix.length)}`,
        shape,
        dtype: options.dtype ?? dtype,
        algorithm: 'copy',
        options: {},
        parents: [{ checkpoint: 2, tensor: name }],
      }),
    )
  const shape = (name: string) => tensors.find((tensor) => tensor.name === `audio_projector.${name}`)?.shape ?? []
  const [first, second] = [shape('linear_1.weight'), shape('linear_2.weight')]
  if (first[1] !== outputs || second[0] !== hidden || first[0] !== second[1])
    throw new ConanError(
      'TENSOR_SHAPE',
      `${directory}: projector: expected linear_1 [*, ${outputs}] and linear_2 [${hidden}, *], got [${first.join(', ')}] and [${second.join(', ')}]`,
    )
  const sizes = {
    inputSize: outputs,
    hiddenSize: first[0] as number,
    outputSize: hidden,
    hiddenAct: options.hiddenAct ?? String(known.hidden_act ?? hiddenAct),
    bias: shape('linear_1.bias').length > 0,
  }
  return { tensors, sizes, directory }
}

function openProjector(directory: string): Parent {
  if (existsSync(path.join(directory, 'config.json'))) return openParent(directory, '.')
  // openParent asks for a config.json, which a projector alone does not need.
  if (!existsSync(directory)) throw new ConanError('MODEL_NOT_FOUND', `projector: expected a directory ${directory}, found nothing`)
  return { name: directory, root: directory, directory, adapters: [], tensors: checkpointTensors(directory), config: {} }
}

/** tokenizer_config.json lists added tokens once more (transformers 4). */
function extendTokenizerConfig(file: string, { ids, added }: { ids: Record<string, number>; added: string[] }): void {
  if (!existsSync(file)) return
  const config = readJson(file)
  const decoder = config.added_tokens_decoder as Record<string, unknown> | undefined
  if (!decoder) return
  for (const content of added) decoder[String(ids[content])] = { content, lstrip: false, normalized: false, rstrip: false, single_word: false, special: true }
  writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`)
}

/** The backbone's chat template with sounds in it; undefined where it has none and needs none. */
function taughtTemplate({ directory }: Parent): string | undefined {
  const file = path.join(directory, 'chat_template.jinja')
  const config = readJsonIf(path.join(directory, 'tokenizer_config.json'))
  const template = existsSync(file) ? readFileSync(file, 'utf8') : config.chat_template
  const vision = readJson(path.join(directory, 'config.json')).vision_config !== undefined
  if (typeof template !== 'string' || (!vision && !/image/.test(template))) return undefined
  return templateWithAudio(template, existsSync(file) ? file : path.join(directory, 'tokenizer_config.json'))
}

function omniConfig(backbone: Parent, audioConfig: Json, projector: ProjectorSizes, ids: Record<string, number>, rows: number): Json {
  const config = structuredClone(backbone.config)
  textConfig(config).vocab_size = rows
  if ('vocab_size' in config) config.vocab_size = rows
  const { inputSize, hiddenSize, outputSize, hiddenAct, bias } = projector
  return {
    ...config,
    audio_config: audioConfig,
    audio_projector_config: { input_size: inputSize, hidden_size: hiddenSize, output_size: outputSize, hidden_act: hiddenAct, bias },
    audio_token_id: ids[featureToken],
    audio_start_token_id: ids[startToken],
    audio_end_token_id: ids[endToken],
  }
}

/** The encoder's own feature extractor, else Whisper's for its number of mel bins. */
function audioPreprocessor({ directory }: Parent, audioConfig: Json): Json {
  const own = (readJsonIf(path.join(directory, 'processor_config.json')).feature_extractor ??
    readJsonIf(path.join(directory, 'preprocessor_config.json'))) as Json
  const known = /Whisper/.test(String(own.feature_extractor_type)) ? own : {}
  return {
    feature_extractor_type: 'WhisperFeatureExtractor',
    feature_size: audioConfig.num_mel_bins,
    sampling_rate: 16000,
    hop_length: 160,
    n_fft: 400,
    chunk_length: 30,
    padding_value: 0,
    ...Object.fromEntries(
      Object.entries(known).filter(([key]) => ['feature_size', 'sampling_rate', 'hop_length', 'n_fft', 'chunk_length', 'padding_value'].includes(key)),
    ),
  }
}
