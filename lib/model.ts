// loadModel and Model: a directory in, vectors out.
import path from 'node:path'
import { binding, type NativeMedia, type NativeModel, type NativeModelInfo, type NativeTrainingPlan } from './binding'
import { type Content, contentOf, type EmbedInput, type Modality } from './embed/inputs'
import { joined, MediaReader, type Medium, placeholdersOf, type SoundCache } from './embed/media'
import { allocate, type Precision, precisions, store, storedLength, type Vectors } from './embed/precision'
import { choosePrompt, type PromptOptions, promptRenderer } from './embed/prompts'
import { checkedVectors, similarities, similarityTo } from './embed/similarity'
import { Tokenizer, type TruncateSide } from './embed/tokenizer'
import { asConanError, ConanError, shown } from './errors'
import { type ModelDirectory, modelPath, ownModel, readModelDirectory } from './files/model-directory'
import { type MediaSettings, type ProcessorOptions, withOptions } from './media/processor'
import { localBy, type RemoteFetch } from './media/remote'
import { oneOf, pathOf, positive, requireOptions } from './options'

export interface LoadOptions {
  /**
   * 'cpu', 'cuda' (the first GPU) or 'cuda:N'; what cannot be used is an error with the reason. Several, 'cuda:0,cuda:1', hold the model
   * once each and share the batches of every call. 'auto', the default, is the first GPU that can be used and takes the model, else the CPU;
   * where a GPU refuses it, a warning and `info.fallback` say why. The environment's CONAN_DEVICE is another default.
   */
  device?: string
  /**
   * How weights are held and multiplied: 'float32', 'bfloat16', 'float16', 'int8' (one scale per output channel,
   * activations quantised per token). 'auto', the default, is what the checkpoint stores.
   */
  dtype?: 'auto' | 'float32' | 'bfloat16' | 'float16' | 'int8'
  /** Threads of a forward pass. Default: the cores this process may use, or CONAN_THREADS. */
  threads?: number
  /** PEFT directories with LoRA weights, merged into the model in this order. */
  adapters?: string | string[]
  /** Longest input in tokens, special tokens included; at most what the model allows. */
  maxTokens?: number
  /** How images and videos are prepared, where that is not to be as the directory says. */
  processor?: ProcessorOptions
}

/** What a model computes on and how, among the options of something that loads one. */
export type ComputeOptions = Pick<LoadOptions, 'device' | 'dtype' | 'threads'>

/** @internal those alone */
export const computeOptions = ({ device, dtype, threads }: ComputeOptions): ComputeOptions => ({
  ...(device && { device }),
  ...(dtype && { dtype }),
  ...(threads !== undefined && { threads }),
})

export interface EmbedOptions extends PromptOptions {
  /** First components to keep (Matryoshka). An error where the model does not declare it, unless `force`. */
  dimensions?: number
  /** The same as `dimensions`, as sentence-transformers calls it. */
  truncateDim?: number
  force?: boolean
  /** Vectors of length 1. Default true. */
  normalize?: boolean
  precision?: Precision
  /** Inputs per forward pass at most. Default: no limit but maxBatchTokens. */
  batchSize?: number
  /** Tokens per forward pass at most (a longer input has one to itself). Default 4096, on GPUs 32768. */
  maxBatchTokens?: number
  /** What happens to inputs that are too long. Default: the tokenizer's side, usually 'end'. */
  truncate?: 'error' | TruncateSide
  /**
   * What an input does that the model does not take, that cannot be read or that is too long: end the call ('throw', the default), or be left out ('skip'):
   * its vector is zeros, and `errors` names it.
   */
  onError?: 'throw' | 'skip'
  /** How images and videos are prepared, where that is not to be as the model was loaded. */
  processor?: ProcessorOptions
  /**
   * How media are fetched whose address is one of http or https: the platform's `fetch`, or `remoteFetch({ hosts: [...] })`, which takes
   * from some hosts alone. Without it such addresses are errors.
   */
  fetch?: RemoteFetch
  signal?: AbortSignal
  onProgress?: (progress: { done: number; total: number | undefined; tokens: number }) => void
}

export interface InputError {
  index: number
  error: ConanError
}

export interface Usage {
  /** Tokens computed, by modality; what frames media counts as text. */
  text: number
  image: number
  video: number
  audio: number
  /** Indices of the inputs that were shortened. */
  truncated: number[]
}

export interface EmbedResult {
  /** Row-major [n, dimensions]; for binary and ubinary [n, dimensions / 8]. */
  vectors: Vectors
  dimensions: number
  usage: Usage
  /** The inputs that `onError: 'skip'` left out. */
  errors: InputError[]
}

export interface StreamedVector {
  index: number
  /** Of length 0 for an input that `onError: 'skip'` left out. */
  vector: Vectors
  truncated: boolean
  /** That the input had, those that stand for media among them; 0 where it was left out. */
  tokens: number
  error?: ConanError
}

export interface ModelInfo extends NativeModelInfo {
  directory: string
  device: string
  /** Why device 'auto' did not take the GPU there is; undefined where it did, or there is none. */
  fallback: string | undefined
  pooling: string
  maxTokens: number
  prompts: Record<string, string>
  defaultPromptName: string | undefined
  matryoshka: number[] | undefined
  /** Text of the special token that every input ends with; undefined: the tokenizer adds none. */
  finalToken: string | undefined
}

const defaultBatchTokens = { cpu: 4096, gpu: 32768 }
/** Texts tokenised in one go: enough to keep the tokenizer's threads busy, few enough to stay ahead by one batch. */
const tokenizeChunk = 128
/** Images and sounds decoded in one go: enough to keep all threads busy, few enough that they fit anywhere. A video counts as so many. */
const imageChunk = 8

interface Settings extends MediaSettings {
  prompt: string
  dimensions: number
  normalize: boolean
  precision: Precision
  batchSize: number
  maxBatchTokens: number
  truncate: 'error' | TruncateSide
  skip: boolean
  fetch: RemoteFetch | undefined
  signal: AbortSignal | undefined
}

/** Inputs that go through the model together. */
export interface Batch {
  /** Which inputs it holds, rising. */
  indices: number[]
  /** Inputs up to here that were left out since the batch before. */
  failed: InputError[]
  ids: Int32Array
  offsets: Int32Array
  truncated: boolean[]
  media: NativeMedia | undefined
  /** Tokens that stand for media, by kind. */
  tokens: Record<Medium['kind'], number>
}

/**
 * Loads a Hugging Face or sentence-transformers directory; without one, or as "conan-nano", the small model that comes with this package.
 *
 * @throws ConanError MODEL_NOT_FOUND, CONFIG_INVALID, UNSUPPORTED_ARCHITECTURE, TENSOR_MISSING, FILE_CORRUPT, ...
 */
export function loadModel(directory: string = ownModel, options: LoadOptions = {}): Promise<Model> {
  return load(directory, options, undefined)
}

/** The first GPU; an emulated one, which has no memory of its own, is no reason to leave the CPU. */
function chosenDevice(): string {
  return (
    binding()
      .gpus()
      .find(({ device, memory }) => device !== '' && memory > 0)?.device ?? 'cpu'
  )
}

/** @internal a model whose weights can be trained: in float32 where they train */
export async function load(directory: string, options: LoadOptions, training: NativeTrainingPlan | undefined): Promise<Model> {
  requireOptions(options)
  const device = options.device ?? (process.env.CONAN_DEVICE || 'auto')
  if (typeof device !== 'string' || !/^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$/.test(device))
    throw new ConanError('INVALID_OPTION', `device: expected auto, cpu, cuda, cuda:N or several with commas, got ${shown(device)}`)
  const devices = device === 'auto' ? [chosenDevice()] : device.split(',')
  if (training && devices.length > 1) throw new ConanError('INVALID_OPTION', `device: expected one to train on, got ${shown(device)}`)
  const dtype = oneOf(options.dtype, 'dtype', ['auto', 'float32', 'bfloat16', 'float16', 'int8'] as const, 'auto')
  const threads = options.threads === undefined ? 0 : positive(options.threads, 'threads', 0)
  if (threads > 1024) throw new ConanError('INVALID_OPTION', `threads: expected at most 1024, got ${threads}`)
  const found = readModelDirectory(modelPath(directory))
  const read = { ...found, ...withOptions(found, options.processor) }
  const native = binding()
  const loading = {
    directory: read.directory,
    adapters: [options.adapters ?? []].flat().map((adapter) => path.resolve(pathOf(adapter, 'adapters'))),
    dtype,
    threads,
    pooling: read.pooling,
    dense: read.dense,
    ...(training && { training: JSON.stringify(training) }),
  }
  const handles: NativeModel[] = []
  let fallback: string | undefined
  try {
    for (const [i, one] of devices.entries()) {
      try {
        handles.push(await native.load({ ...loading, device: one }))
      } catch (error) {
        const { code, message } = asConanError(error)
        if (device !== 'auto' || one === 'cpu' || !/^(DEVICE_|OUT_OF_MEMORY|BACKEND_)/.test(code)) throw error
        fallback = `${one}: ${message}`
        process.emitWarning(`device auto: the model runs on the CPU: ${fallback}`)
        devices[i] = 'cpu'
        handles.push(await native.load({ ...loading, device: 'cpu' }))
      }
    }
    const infos = handles.map((handle) => native.modelInfo(handle))
    const info = infos[0]!
    const limit = Math.min(read.maxTokens ?? info.maxPositions, info.maxPositions)
    const maxTokens = Math.min(positive(options.maxTokens, 'maxTokens', limit), info.maxPositions)
    const tokenizer = await Tokenizer.load(read.tokenizerFile, read.tokenizerConfig, maxTokens)
    return new Model(handles, read, tokenizer, {
      ...info,
      backend: infos.map(({ backend }) => backend).join(', '),
      memoryBytes: infos.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0),
      directory: read.directory,
      device: devices.join(','),
      fallback,
      pooling: read.pooling,
      maxTokens,
      prompts: read.prompts,
      defaultPromptName: read.defaultPromptName,
      matryoshka: read.matryoshka,
      finalToken: tokenizer.finalToken?.text,
    })
  } catch (error) {
    for (const handle of handles) native.dispose(handle)
    throw asConanError(error)
  }
}

/** The model on a device. On a GPU it stands in two places: the next forward pass is prepared there, and its data go there, while one runs. */
interface Place {
  handle: NativeModel
  /** Nobody else's pass can be taken for the one that runs here. */
  alone: boolean
}

/** A loaded model. Calls may overlap; forward passes take turns on each device. Free it with `dispose()` or `await using`. */
export class Model {
  /** What was loaded and how it runs. */
  readonly info: ModelInfo
  /** The model on each of its devices. None: disposed. */
  private handles: NativeModel[]
  /** Where forward passes run; where none does; and who waits for a place, in order. */
  private readonly places: readonly Place[]
  private readonly idle: Place[]
  private readonly waiting: ((place: Place) => void)[] = []
  private disposed: Promise<void> | undefined
  private readonly render: ReturnType<typeof promptRenderer>
  /**
   * Whether the tokenizer adds its special tokens: to plain text, and to a rendered template where a processor of transformers
   * would let it, which is a model with media whose template does not begin with the token itself.
   */
  private readonly special: boolean
  private readonly modalities: readonly Modality[]
  private readonly media: MediaReader
  /** @internal use loadModel */
  constructor(
    handles: NativeModel[],
    private readonly directory: ModelDirectory,
    private readonly tokenizer: Tokenizer,
    info: ModelInfo,
  ) {
    this.handles = handles
    const devices = info.device.split(',')
    const first = handles.map((handle, i) => ({ handle, alone: devices[i] === 'cpu' }))
    this.places = [...first, ...first.filter(({ alone }) => !alone)]
    this.idle = [...this.places]
    this.info = info
    const placeholders = placeholdersOf(info, directory, tokenizer)
    this.render = promptRenderer(directory, placeholders)
    const { bos_token } = directory.tokenizerConfig as { bos_token?: string | { content: string } }
    const bos = (typeof bos_token === 'object' ? bos_token?.content : bos_token) || undefined
    const begins = () => bos !== undefined && this.render({ text: 'a', videos: 0, images: 0, audios: 0 }, '').startsWith(bos)
    this.special = directory.chat === undefined || (directory.image !== undefined && !begins())
    this.modalities = ['text', ...(directory.image ? (['image', 'video', 'document'] as const) : []), ...(directory.audio ? (['audio'] as const) : [])]
    const audioTokens = (frames: number) => binding().audioTokens(this.checkAlive(undefined), Int32Array.of(frames))[0] as number
    this.media = new MediaReader(placeholders, audioTokens, info.maxTokens, info.melBins ?? 1)
  }

  /** Whether inputs of this kind can be embedded. */
  supports(modality: Modality): boolean {
    return this.modalities.includes(modality)
  }

  /**
   * Embeds inputs. A vector depends on its input and the options alone, not on what else is in the call.
   *
   * @throws ConanError INVALID_INPUT, INPUT_TOO_LONG, INVALID_OPTION, ABORTED, DISPOSED
   */
  async embed(inputs: EmbedInput | EmbedInput[], options: EmbedOptions = {}): Promise<EmbedResult> {
    const settings = this.settings(options)
    const list = Array.isArray(inputs) ? inputs : [inputs]
    const contents = list.map((input, i) => contentOf(input, i, this.modalities, settings.skip))
    const vectors = allocate(settings.precision, contents.length, settings.dimensions)
    const usage: Usage = { text: 0, image: 0, video: 0, audio: 0, truncated: [] }
    const errors: InputError[] = []
    let done = 0
    let tokens = 0
    for await (const { batch, values } of this.pipeline(contents, settings, (batch) => this.vectorsOf(batch, settings))) {
      for (const [i, index] of batch.indices.entries())
        store(values.subarray(i * settings.dimensions, (i + 1) * settings.dimensions), settings.dimensions, settings.precision, vectors, index)
      errors.push(...batch.failed)
      done += batch.indices.length + batch.failed.length
      tokens += batch.ids.length
      usage.text += batch.ids.length
      for (const [kind, count] of Object.entries(batch.tokens) as [Medium['kind'], number][]) {
        usage[kind] += count
        usage.text -= count
      }
      for (const [i, cut] of batch.truncated.entries()) if (cut) usage.truncated.push(batch.indices[i] as number)
      options.onProgress?.({ done, total: contents.length, tokens })
    }
    return { vectors, dimensions: settings.dimensions, usage, errors }
  }

  /**
   * Hidden states of every token, batch by batch: `layers` are the states before the first layer, after each, and after
   * the final norm, each [T, hiddenSize] row-major; input `first + b` has rows offsets[b] to offsets[b + 1].
   *
   * @throws ConanError as embed
   */
  async *hiddenStates(inputs: EmbedInput[], options: EmbedOptions = {}): AsyncGenerator<{ first: number; offsets: Int32Array; layers: Float32Array[] }> {
    const settings = { ...this.settings(options), skip: false }
    const contents = inputs.map((input, i) => contentOf(input, i, this.modalities, false))
    const states = ({ ids, offsets, media }: Batch) => this.forward(settings.signal, (handle) => binding().hiddenStates(handle, ids, offsets, media))
    for await (const { batch, values } of this.pipeline(contents, settings, states))
      yield { first: batch.indices[0] as number, offsets: batch.offsets, layers: values }
  }

  /** embed with the model's prompt "query", where it has one. */
  embedQuery(inputs: EmbedInput | EmbedInput[], options: EmbedOptions = {}): Promise<EmbedResult> {
    return this.embed(inputs, this.withPrompt(options, ['query']))
  }

  /** embed with the model's prompt "document" (or "passage", "corpus"), where it has one. */
  embedDocument(inputs: EmbedInput | EmbedInput[], options: EmbedOptions = {}): Promise<EmbedResult> {
    return this.embed(inputs, this.withPrompt(options, ['document', 'passage', 'corpus']))
  }

  /** Embeds a stream of any length, in order, holding only a few batches at a time. */
  async *embedStream(inputs: AsyncIterable<EmbedInput> | Iterable<EmbedInput>, options: EmbedOptions = {}): AsyncGenerator<StreamedVector> {
    const settings = this.settings(options)
    const { modalities } = this
    if (!inputs || !(Symbol.asyncIterator in Object(inputs) || Symbol.iterator in Object(inputs)))
      throw new ConanError('INVALID_INPUT', `inputs: expected something to iterate over, got ${shown(inputs)}`)
    async function* contents() {
      let index = 0
      for await (const input of inputs) yield contentOf(input, index++, modalities, settings.skip)
    }
    let done = 0
    let tokens = 0
    for await (const { batch, values } of this.pipeline(contents(), settings, (batch) => this.vectorsOf(batch, settings))) {
      const n = batch.indices.length
      const stored = allocate(settings.precision, n, settings.dimensions)
      store(values, settings.dimensions, settings.precision, stored, 0)
      const length = storedLength(settings.precision, settings.dimensions)
      done += n + batch.failed.length
      tokens += batch.ids.length
      options.onProgress?.({ done, total: undefined, tokens })
      const good = batch.indices.map((index, i) => ({
        index,
        vector: stored.slice(i * length, (i + 1) * length),
        truncated: batch.truncated[i] as boolean,
        tokens: batch.offsets[i + 1]! - batch.offsets[i]!,
      }))
      const bad = batch.failed.map(({ index, error }) => ({ index, vector: stored.slice(0, 0), truncated: false, tokens: 0, error }))
      yield* [...good, ...bad].sort((a, b) => a.index - b.index)
    }
  }

  /**
   * Similarity of every row of `a` with every row of `b` by the model's own measure (cosine unless it says otherwise),
   * row-major [a rows, b rows]. Distances come out negative, so that larger is always nearer. In single precision, on the CPU.
   *
   * @throws ConanError INVALID_INPUT, OUT_OF_MEMORY
   */
  similarity(a: Pick<EmbedResult, 'vectors' | 'dimensions'>, b: Pick<EmbedResult, 'vectors' | 'dimensions'>): Float32Array {
    return similarities(this.directory.similarity, ...checkedVectors(a, b), this.info.threads)
  }

  /** @internal The same row by row of lists that come one after the other: a row is good until the next is asked for. */
  similarityTo(b: Pick<EmbedResult, 'vectors' | 'dimensions'>): (a: Pick<EmbedResult, 'vectors' | 'dimensions'>) => Generator<Float32Array> {
    const rows = similarityTo(this.directory.similarity, checkedVectors(b, b)[1], this.info.threads)
    return (a) => rows(checkedVectors(a, b)[0])
  }

  /**
   * @internal Inputs made ready for forward passes, in as many batches as maxBatchTokens asks for; with `kind` under the model's prompt
   * for it. Inputs that cannot be read are in `failed` of the batches where `onError` is 'skip'.
   */
  async prepare(inputs: EmbedInput[], options: EmbedOptions, kind?: 'query' | 'document'): Promise<Batch[]> {
    const names = kind === 'query' ? ['query'] : ['document', 'passage', 'corpus']
    const settings = this.settings(kind === undefined ? options : this.withPrompt(options, names))
    const contents = inputs.map((input, i) => contentOf(input, i, this.modalities, settings.skip))
    const batches: Batch[] = []
    for await (const batch of this.batches(contents, settings)) batches.push(batch)
    return batches
  }

  /** @internal Work on the native model, when what was asked for before is done. */
  run<T>(work: (handle: NativeModel) => Promise<T>, signal?: AbortSignal): Promise<T> {
    return this.forward(signal, work)
  }

  /** @internal Sounds go through the encoder once, and come from `cache` afterwards. */
  cacheSounds(cache: SoundCache): void {
    this.media.cache = { ...cache, encode: (media) => this.run((handle) => binding().encodeSounds(handle, media)), width: this.info.audioFeatures ?? 1 }
  }

  /** Frees the weights, after running work is done. Later calls fail with DISPOSED. Calling it twice is fine. */
  dispose(): Promise<void> {
    this.disposed ??= this.free()
    return this.disposed
  }

  private async free(): Promise<void> {
    const { handles } = this
    this.handles = []
    // Who waits in front of this finds the model disposed, and hands on.
    await Promise.all(this.places.map(() => this.acquire()))
    for (const handle of handles) binding().dispose(handle)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  private withPrompt(options: EmbedOptions, names: string[]): EmbedOptions {
    requireOptions(options)
    if (options.promptName !== undefined || options.prompt !== undefined || options.instruction !== undefined) return options
    const promptName = names.find((name) => Object.hasOwn(this.directory.prompts, name))
    return promptName === undefined ? options : { ...options, promptName }
  }

  private settings(options: EmbedOptions): Settings {
    requireOptions(options)
    if (options.dimensions !== undefined && options.truncateDim !== undefined && options.dimensions !== options.truncateDim)
      throw new ConanError('INVALID_OPTION', `dimensions and truncateDim are the same option, got ${options.dimensions} and ${options.truncateDim}`)
    const asked = options.dimensions ?? options.truncateDim
    const dimensions = positive(asked, 'dimensions', this.directory.truncateDim ?? this.info.dimensions)
    if (dimensions > this.info.dimensions) throw new ConanError('INVALID_OPTION', `dimensions: expected at most ${this.info.dimensions}, got ${dimensions}`)
    if (asked !== undefined && asked !== this.info.dimensions && !this.info.matryoshka && this.directory.truncateDim === undefined && !options.force)
      throw new ConanError(
        'INVALID_OPTION',
        `dimensions: this model has ${this.info.dimensions} and does not declare that its first ${asked} can stand alone (Matryoshka); pass force: true to cut all the same`,
      )
    const prompt = choosePrompt(this.directory, options)
    if (prompt && !this.directory.includePrompt)
      throw new ConanError('INVALID_OPTION', 'prompt: this model leaves prompts out of its pooling ("include_prompt": false), which is not supported')
    if (options.fetch !== undefined && typeof options.fetch !== 'function')
      throw new ConanError('INVALID_OPTION', `fetch: expected a function, got ${shown(options.fetch)}`)
    const side = this.directory.tokenizerConfig.truncation_side === 'left' ? 'start' : 'end'
    return {
      prompt,
      dimensions,
      normalize: options.normalize ?? true,
      precision: oneOf(options.precision, 'precision', precisions, 'float32'),
      batchSize: positive(options.batchSize, 'batchSize', Number.POSITIVE_INFINITY),
      maxBatchTokens: positive(options.maxBatchTokens, 'maxBatchTokens', this.info.device.includes('cpu') ? defaultBatchTokens.cpu : defaultBatchTokens.gpu),
      skip: oneOf(options.onError, 'onError', ['throw', 'skip'] as const, 'throw') === 'skip',
      truncate: oneOf(options.truncate, 'truncate', ['error', 'start', 'end'] as const, side),
      ...withOptions(this.directory, options.processor),
      fetch: options.fetch,
      signal: options.signal,
    }
  }

  /** Batches with their vectors, in order, one in each place at a time. The next batch is tokenised meanwhile. */
  private async *pipeline<T>(
    contents: Iterable<Content> | AsyncIterable<Content>,
    settings: Settings,
    pass: (batch: Batch) => Promise<T>,
  ): AsyncGenerator<{ batch: Batch; values: T }> {
    const batches = this.batches(contents, settings)
    const quietly = <P extends Promise<unknown>>(promise: P): P => {
      promise.catch(() => {}) // it is awaited below, perhaps after another error
      return promise
    }
    const width = this.places.length
    const flying: Promise<{ batch: Batch; values: T }>[] = []
    let next: Promise<IteratorResult<Batch, undefined>> | undefined = quietly(batches.next())
    try {
      while (next || flying.length) {
        // Where the next batch cannot be made, those before it come first.
        while (next && flying.length < width) {
          const made: IteratorResult<Batch, undefined> | undefined = flying.length ? await next.catch(() => undefined) : await next
          if (!made) break
          const batch: Batch | undefined = made.value
          next = batch && quietly(batches.next())
          if (batch) flying.push(quietly(pass(batch).then((values) => ({ batch, values }))))
        }
        const first = flying.shift()
        if (first) yield await first
      }
    } finally {
      await Promise.allSettled(flying)
      await batches.return(undefined).catch(() => {})
    }
  }

  private async *batches(contents: Iterable<Content> | AsyncIterable<Content>, settings: Settings): AsyncGenerator<Batch, undefined> {
    const pending: { index: number; ids: number[]; truncated: boolean; media: Medium[] }[] = []
    let failed: InputError[] = []
    let tokens = 0
    const cut = (): Batch => {
      const offsets = new Int32Array(pending.length + 1)
      const ids = new Int32Array(tokens)
      for (const [i, item] of pending.entries()) {
        ids.set(item.ids, offsets[i])
        offsets[i + 1] = (offsets[i] as number) + item.ids.length
      }
      const media = pending.flatMap((item) => item.media)
      const tokensOf = (kind: Medium['kind']) => media.reduce((sum, medium) => sum + (medium.kind === kind ? medium.tokens : 0), 0)
      const batch = {
        indices: pending.map(({ index }) => index),
        failed,
        ids,
        offsets,
        truncated: pending.map((item) => item.truncated),
        media: joined(media, this.media.cache?.width ?? this.info.melBins ?? 1, this.media.cache !== undefined),
        tokens: { image: tokensOf('image'), video: tokensOf('video'), audio: tokensOf('audio') },
      }
      failed = []
      pending.length = 0
      tokens = 0
      return batch
    }
    const local = localBy(settings.fetch, settings.signal)
    let next = 0
    for await (const chunk of chunks(contents)) {
      this.checkAlive(settings.signal)
      const first = next
      next += chunk.length
      const read = await Promise.all(
        chunk.map(async (content, i) => {
          try {
            if (content.fault) throw content.fault
            const media = await this.media.read(content, settings, local, first + i)
            const of = (kind: Medium['kind']) => media.filter((medium) => medium.kind === kind).length
            const parts = { text: content.text, videos: of('video'), images: of('image'), audios: of('audio') }
            return { media, rendered: this.media.expand(this.render(parts, settings.prompt), media, first + i) }
          } catch (error) {
            if (!settings.skip) throw error
            return { media: [], rendered: '', error: asConanError(error) }
          }
        }),
      )
      this.checkAlive(settings.signal) // what was aborted is not an input that cannot be read
      const texts = read.map(({ rendered }) => rendered)
      const encoded = await this.tokenizer.encode(texts, settings.truncate === 'start' ? 'start' : 'end', this.special)
      for (const [i, { ids, truncated }] of encoded.entries()) {
        const index = first + i
        const { media, error = this.faultOf(ids, truncated, media.length > 0 || settings.truncate === 'error', index) } = read[i]!
        if (error) {
          if (!settings.skip) throw error
          failed.push({ index, error })
          continue
        }
        if (pending.length && (tokens + ids.length > settings.maxBatchTokens || pending.length >= settings.batchSize)) yield cut()
        pending.push({ index, ids, truncated, media })
        tokens += ids.length
      }
    }
    if (pending.length || failed.length) yield cut()
    return undefined
  }

  private faultOf(ids: number[], truncated: boolean, whole: boolean, index: number): ConanError | undefined {
    if (truncated && whole) return new ConanError('INPUT_TOO_LONG', `input ${index}: expected at most ${this.info.maxTokens} tokens, got more`)
    if (ids.length === 0) return new ConanError('INVALID_INPUT', `input ${index}: its text gives no tokens (the tokenizer adds none to an empty text)`)
    return undefined
  }

  private checkAlive(signal: AbortSignal | undefined): NativeModel {
    if (signal?.aborted) throw new ConanError('ABORTED', 'embed was aborted', { cause: signal.reason })
    const [handle] = this.handles
    if (!handle) throw new ConanError('DISPOSED', 'the model was disposed')
    return handle
  }

  private async acquire(): Promise<Place> {
    return this.idle.shift() ?? new Promise((resolve) => this.waiting.push(resolve))
  }

  private release(place: Place): void {
    const next = this.waiting.shift()
    if (next) next(place)
    else this.idle.push(place)
  }

  private async vectorsOf({ ids, offsets, media }: Batch, { signal, normalize, dimensions }: Settings): Promise<Float32Array> {
    if (ids.length === 0) return new Float32Array(0) // nothing but inputs that were left out
    return this.forward(signal, (handle) => binding().embed(handle, ids, offsets, normalize, dimensions, media))
  }

  /** One forward pass, in the first place that those asked for before leave free. */
  private async forward<T>(signal: AbortSignal | undefined, pass: (handle: NativeModel) => Promise<T>): Promise<T> {
    this.checkAlive(signal)
    const place = await this.acquire()
    const { handle, alone } = place
    try {
      this.checkAlive(signal)
      const cancel = () => alone && binding().cancel(handle)
      signal?.addEventListener('abort', cancel, { once: true })
      try {
        const result = await pass(handle)
        if (signal?.aborted) this.checkAlive(signal) // it was not cancelled
        return result
      } catch (error) {
        const known = asConanError(error)
        throw known.code === 'ABORTED' ? new ConanError('ABORTED', 'embed was aborted', { cause: signal?.reason }) : known
      } finally {
        signal?.removeEventListener('abort', cancel)
      }
    } finally {
      this.release(place)
    }
  }
}

async function* chunks(items: Iterable<Content> | AsyncIterable<Content>): AsyncGenerator<Content[]> {
  let chunk: Content[] = []
  let images = 0
  for await (const item of items) {
    chunk.push(item)
    images += item.images.length + item.audios.length + (item.document ? 1 : 0) + imageChunk * item.videos.length
    if (chunk.length === tokenizeChunk || images >= imageChunk) {
      yield chunk
      chunk = []
      images = 0
    }
  }
  if (chunk.length) yield chunk
}
