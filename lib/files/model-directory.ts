// Reads what stands around the weights in a Hugging Face or sentence-transformers directory: modules, pooling, dense
// layers, prompts, lengths, tokenizer files. Both generations of spellings.

import { existsSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { type NativeDense, packageRoot } from '../binding'
import { ConanError, shown } from '../errors'
import { type AudioSettings, type ImageSettings, readAudioSettings, readImageSettings, readVideoSettings, type VideoSettings } from '../media/processor'
import { pathOf } from '../options'
import { type Json, readJson, readJsonIf } from './json'

export type PoolingMode = 'cls' | 'lasttoken' | 'mean' | 'mean_sqrt_len_tokens' | 'max' | 'weightedmean'
const similarities = ['cosine', 'dot', 'euclidean', 'manhattan'] as const
export type Similarity = (typeof similarities)[number]

export interface ChatFormat {
  template: string
  format: 'structured' | 'flat'
  /** Further variables of the template, such as add_generation_prompt. */
  variables: Json
  /** The instruction where the caller gives none. */
  instruction?: string
  /** What stands for an input without any content. */
  emptyText: string
}

export interface ModelDirectory {
  /** Where the transformer's config.json and weights are. */
  directory: string
  pooling: PoolingMode
  includePrompt: boolean
  dense: NativeDense[]
  /** Whether the directory's own modules end in normalisation. */
  normalize: boolean
  maxTokens: number | undefined
  prompts: Record<string, string>
  defaultPromptName: string | undefined
  truncateDim: number | undefined
  similarity: Similarity
  /** Dimensions the model was trained for with Matryoshka; undefined: not declared. */
  matryoshka: number[] | undefined
  chat: ChatFormat | undefined
  tokenizerFile: string
  tokenizerConfig: Json
  /** How pictures are prepared; undefined: a model of text alone. */
  image: ImageSettings | undefined
  video: VideoSettings | undefined
  audio: AudioSettings | undefined
  /** Ids of the tokens around a picture and around a sound. */
  mediaTokens: Record<'vision' | 'audio', { start: number; end: number }>
}

function positiveInteger(value: unknown, file: string, key: string): number {
  if (!Number.isInteger(value) || (value as number) < 1)
    throw new ConanError('CONFIG_INVALID', `${file}: "${key}": expected a positive whole number, got ${shown(value)}`)
  return value as number
}

function similarityOf(config: Json, file: string): Similarity {
  const value = config.similarity_fn_name ?? 'cosine'
  if (!similarities.includes(value as Similarity))
    throw new ConanError('CONFIG_INVALID', `${file}: "similarity_fn_name": expected one of ${similarities.join(', ')}, got ${shown(value)}`)
  return value as Similarity
}

/** The part of config.json for a tower; undefined: there is none. */
function part(config: Json, key: string, file: string): Json | undefined {
  const value = config[key] ?? undefined
  if (value !== undefined && (typeof value !== 'object' || Array.isArray(value)))
    throw new ConanError('CONFIG_INVALID', `${file}: "${key}": expected an object, got ${shown(value)}`)
  return value as Json | undefined
}

/** Both spellings: pooling_mode_* booleans, and pooling_mode with a name. */
function readPooling(file: string): { mode: PoolingMode; includePrompt: boolean } {
  const config = readJson(file)
  const booleans: [string, PoolingMode][] = [
    ['pooling_mode_cls_token', 'cls'],
    ['pooling_mode_mean_tokens', 'mean'],
    ['pooling_mode_max_tokens', 'max'],
    ['pooling_mode_mean_sqrt_len_tokens', 'mean_sqrt_len_tokens'],
    ['pooling_mode_weightedmean_tokens', 'weightedmean'],
    ['pooling_mode_lasttoken', 'lasttoken'],
  ]
  const names = booleans.map(([, mode]) => mode)
  let chosen = booleans.filter(([key]) => config[key] === true).map(([, mode]) => mode)
  if (typeof config.pooling_mode === 'string' || Array.isArray(config.pooling_mode)) chosen = [config.pooling_mode].flat() as PoolingMode[]
  if (chosen.length !== 1 || !names.includes(chosen[0] as PoolingMode))
    throw new ConanError('CONFIG_INVALID', `${file}: expected one pooling mode of ${names.join(', ')}, got ${chosen.join(' and ') || 'none'}`)
  return { mode: chosen[0] as PoolingMode, includePrompt: config.include_prompt !== false }
}

function readDense(directory: string): NativeDense {
  const file = path.join(directory, 'config.json')
  const config = readJson(file)
  const activation = String(config.activation_function ?? 'torch.nn.modules.activation.Tanh')
  return {
    directory,
    inputs: positiveInteger(config.in_features, file, 'in_features'),
    outputs: positiveInteger(config.out_features, file, 'out_features'),
    bias: config.bias !== false,
    activation: activation.split('.').pop()?.toLowerCase() ?? '',
  }
}

function readMatryoshka(config: Json, prompts: Json): number[] | undefined {
  // Declared in different places by different families; any list of sizes counts.
  for (const value of [config.matryoshka_dimensions, config.matryoshka_dims, prompts.matryoshka_dimensions, prompts.matryoshka_dims])
    if (Array.isArray(value) && value.every(Number.isInteger)) return value as number[]
  return config.is_matryoshka === true || prompts.is_matryoshka === true ? [] : undefined
}

/** `vision`: a plain directory of a vision-language model, which is embedded as Qwen3-VL-Embedding's own code does it. */
function readChat(directory: string, tokenizerConfig: Json, sentence: Json, vision: boolean): ChatFormat | undefined {
  const message = (sentence.modality_config as Json | undefined)?.message as Json | undefined
  if (!message && !vision) return undefined
  const file = path.join(directory, 'chat_template.jinja')
  let template = existsSync(file) ? readFileSync(file, 'utf8') : tokenizerConfig.chat_template
  if (Array.isArray(template)) template = (template as Json[]).find((t) => t.name === 'default')?.template
  if (typeof template !== 'string')
    throw new ConanError(
      'CONFIG_INVALID',
      `${directory}: ${message ? 'sentence_bert_config.json asks for' : 'a vision-language model is given'} chat messages: expected chat_template.jinja or a chat_template in tokenizer_config.json, found neither`,
    )
  if (!message)
    return { template, format: 'structured', variables: { add_generation_prompt: true }, instruction: "Represent the user's input.", emptyText: 'NULL' }
  const variables = ((sentence.processing_kwargs as Json | undefined)?.chat_template ?? {}) as Json
  return { template, format: message.format === 'flat' ? 'flat' : 'structured', variables, emptyText: '' }
}

/** The model that comes with this package: recipes/nano makes it. */
export const ownModel = 'conan-nano'

/** Where a model is; "conan-nano" is the package's own unless there is a directory of that name. */
export function modelPath(name: string): string {
  pathOf(name, 'model')
  return name === ownModel && !existsSync(name) ? path.join(packageRoot(), 'models', ownModel) : path.resolve(name)
}

/** Reads the directory `root`; a plain transformers directory counts as one with mean pooling, or last token for causal language models. */
export function readModelDirectory(root: string): ModelDirectory {
  if (!existsSync(root) || !statSync(root).isDirectory())
    throw new ConanError('MODEL_NOT_FOUND', `${root}: expected a model directory, found ${existsSync(root) ? 'a file' : 'nothing'}`)
  const modulesFile = path.join(root, 'modules.json')
  const modules = existsSync(modulesFile) ? (readJson(modulesFile) as unknown as Json[]) : undefined
  if (modules !== undefined && !(Array.isArray(modules) && modules.every((module) => typeof module === 'object' && module !== null)))
    throw new ConanError('CONFIG_INVALID', `${modulesFile}: expected a list of modules`)

  let directory = root
  let pooling: { mode: PoolingMode; includePrompt: boolean } | undefined
  let normalize = modules === undefined
  const dense: NativeDense[] = []
  for (const module of modules ?? []) {
    const type = String(module.type).split('.').pop()
    const at = path.join(root, String(module.path ?? ''))
    if (type === 'Transformer') directory = at
    else if (type === 'Pooling') pooling = readPooling(path.join(at, 'config.json'))
    else if (type === 'Dense') dense.push(readDense(at))
    else if (type === 'Normalize') normalize = true
    else if (type !== 'Dropout')
      throw new ConanError(
        'UNSUPPORTED_ARCHITECTURE',
        `${modulesFile}: module type: expected Transformer, Pooling, Dense, Normalize or Dropout, got ${shown(module.type)}`,
      )
  }
  const configFile = path.join(directory, 'config.json')
  if (!existsSync(configFile)) throw new ConanError('MODEL_NOT_FOUND', `${directory}: expected config.json, found none`)
  const config = readJson(configFile)
  const sentence = readJsonIf(path.join(directory, 'sentence_bert_config.json'))
  const sentenceTransformers = readJsonIf(path.join(root, 'config_sentence_transformers.json'))
  const tokenizerConfig = readJsonIf(path.join(directory, 'tokenizer_config.json'))
  const tokenizerFile = path.join(directory, 'tokenizer.json')
  if (!existsSync(tokenizerFile)) throw new ConanError('TOKENIZER_INVALID', `${directory}: expected tokenizer.json, found none`)

  // Order of authority: the directory's max_seq_length, then the tokenizer's (unless it is transformers' "very large").
  const modelMaxLength = tokenizerConfig.model_max_length
  let maxTokens: number | undefined
  if (sentence.max_seq_length != null) maxTokens = positiveInteger(sentence.max_seq_length, path.join(directory, 'sentence_bert_config.json'), 'max_seq_length')
  else if (typeof modelMaxLength === 'number' && modelMaxLength > 0 && modelMaxLength < 1e9) maxTokens = modelMaxLength

  const prompts = (sentenceTransformers.prompts ?? {}) as Record<string, string>
  const defaultPromptName = (sentenceTransformers.default_prompt_name ?? undefined) as string | undefined
  if (defaultPromptName !== undefined && !Object.hasOwn(prompts, defaultPromptName))
    throw new ConanError(
      'CONFIG_INVALID',
      `${root}: "default_prompt_name": expected one of ${Object.keys(prompts).join(', ') || '(no prompts)'}, got ${shown(defaultPromptName)}`,
    )
  // As sentence-transformers takes a directory without modules: last token for causal language models, else mean.
  const architecture = String((config.architectures as string[] | undefined)?.[0] ?? '')
  const vision = part(config, 'vision_config', configFile)
  const audio = part(config, 'audio_config', configFile)
  const recipe = config.model_type === 'qwen3_vl' // embedded as Qwen3-VL-Embedding's own code does it
  const causal = (architecture.endsWith('ForCausalLM') || recipe) && config.is_causal !== false
  return {
    directory,
    pooling: pooling?.mode ?? (causal ? 'lasttoken' : 'mean'),
    includePrompt: pooling?.includePrompt ?? true,
    dense,
    normalize,
    maxTokens,
    prompts,
    defaultPromptName,
    truncateDim: (sentenceTransformers.truncate_dim ?? undefined) as number | undefined,
    similarity: similarityOf(sentenceTransformers, path.join(root, 'config_sentence_transformers.json')),
    matryoshka: readMatryoshka(config, sentenceTransformers),
    chat: readChat(directory, tokenizerConfig, sentence, recipe && modules === undefined),
    tokenizerFile,
    tokenizerConfig,
    image: vision && readImageSettings(directory, vision),
    video: vision && readVideoSettings(directory, vision),
    audio: audio && readAudioSettings(directory, audio),
    mediaTokens: {
      vision: { start: Number(config.vision_start_token_id ?? 151652), end: Number(config.vision_end_token_id ?? 151653) },
      audio: { start: Number(config.audio_start_token_id ?? -1), end: Number(config.audio_end_token_id ?? -1) },
    },
  }
}
