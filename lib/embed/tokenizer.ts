// Text to token ids, through Hugging Face's own tokenizer. Truncation keeps the special tokens and is reported.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { Encoding, Tokenizer as NativeTokenizer } from 'tokenizers'
import { ConanError } from '../errors'

const require = createRequire(__filename)
const { Tokenizer: Native } = require('tokenizers') as typeof import('tokenizers')

export type TruncateSide = 'start' | 'end'

export interface Tokens {
  ids: number[]
  truncated: boolean
}

export class Tokenizer {
  private readonly bySide = new Map<TruncateSide, NativeTokenizer>()

  private constructor(
    private readonly file: string,
    private readonly maxTokens: number,
    private readonly appendId: number | undefined,
    /** Id and text of the token that every encoding ends with, where the tokenizer appends one. */
    readonly finalToken: { id: number; text: string } | undefined,
    /** Parsed and not yet bound to a side: large vocabularies take a third of a second to parse. */
    private spare: NativeTokenizer | undefined,
  ) {}

  /** `maxTokens`: longest encoding, special tokens included. The file's own truncation and padding are not used. */
  static async load(file: string, config: Record<string, unknown>, maxTokens: number): Promise<Tokenizer> {
    const native = parseTokenizer(file)
    const ids = (await native.encode('a')).getIds()
    const bare = (await native.encode('a', null, { addSpecialTokens: false })).getIds()
    let last = ids.length > bare.length && ids.at(-1) !== bare.at(-1) ? ids.at(-1) : undefined
    // Some directories say in tokenizer_config.json that an end token is added, while tokenizer.json, which newer
    // libraries take as it is, adds none. Pooling by the last token would then read the wrong one.
    let append: number | undefined
    if (config.add_eos_token === true) {
      const eos = config.eos_token as string | { content: string } | undefined
      const id = eos === undefined ? null : native.tokenToId(typeof eos === 'string' ? eos : eos.content)
      if (id === null)
        throw new ConanError(
          'TOKENIZER_INVALID',
          `${file}: tokenizer_config.json asks for an end token ("add_eos_token"): expected its eos_token in the vocabulary, found none`,
        )
      if (last !== id) append = last = id
    }
    const finalToken = last === undefined ? undefined : { id: last, text: native.idToToken(last) ?? '' }
    return new Tokenizer(file, maxTokens, append, finalToken, native)
  }

  private native(side: TruncateSide): NativeTokenizer {
    let native = this.bySide.get(side)
    if (!native) {
      native = this.spare ?? parseTokenizer(this.file)
      this.spare = undefined
      native.setTruncation(this.maxTokens - (this.appendId === undefined ? 0 : 1), { direction: side === 'start' ? 'left' : 'right' } as never)
      this.bySide.set(side, native)
    }
    return native
  }

  /** The text of a token. */
  textOf(id: number): string | undefined {
    return (this.spare ?? this.native('end')).idToToken(id) ?? undefined
  }

  /** Encodes `texts`; `special`: whether the tokenizer adds its special tokens (a chat template has put them already). */
  async encode(texts: string[], side: TruncateSide, special: boolean): Promise<Tokens[]> {
    // A lone surrogate has no UTF-8 form; it becomes U+FFFD, as it would in any UTF-8 file.
    const clean = texts.map((text) => text.toWellFormed())
    const encodings: Encoding[] = await this.native(side).encodeBatch(clean, { addSpecialTokens: special })
    return encodings.map((encoding) => {
      const ids = encoding.getIds()
      if (special && this.appendId !== undefined) ids.push(this.appendId)
      if (special && this.finalToken && ids.at(-1) !== this.finalToken.id)
        throw new ConanError(
          'TOKENIZER_INVALID',
          `${this.file}: expected every text to end with ${this.finalToken.text} (${this.finalToken.id}), got id ${ids.at(-1)}`,
        )
      return { ids, truncated: encoding.getOverflowing().length > 0 }
    })
  }
}

/** What stands after texts: found without parsing the file, as a large vocabulary takes longer to parse than a small model to load. */
function postProcessorOf(bytes: Buffer): PostProcessor {
  const name = '"post_processor"'
  for (let at = bytes.indexOf(name); at >= 0; at = bytes.indexOf(name, at + 1)) {
    const text = bytes.toString('utf8', at + name.length, at + (1 << 20))
    const start = /^\s*:\s*(?=\{)/.exec(text)?.[0].length
    let depth = 0
    for (const { 0: mark, index } of start === undefined ? [] : text.matchAll(/"(?:[^"\\]|\\.)*"|[{}]/gs)) {
      if (mark === '{') depth++
      else if (mark === '}' && --depth === 0) return JSON.parse(text.slice(start, index + 1))
    }
  }
  return {}
}

interface PostProcessor {
  processors?: PostProcessor[]
  single?: { SpecialToken?: { id: string } }[]
  pair?: { SpecialToken?: { id: string } }[]
  special_tokens?: Record<string, unknown>
}

/** A template that asks for another token ends the process inside the library, at the first text. */
function requireTokens({ processors, single, pair, special_tokens }: PostProcessor): void {
  for (const { SpecialToken } of [...(single ?? []), ...(pair ?? [])])
    if (SpecialToken && !Object.hasOwn(special_tokens ?? {}, SpecialToken.id))
      throw new Error(`"post_processor": expected "special_tokens" to hold "${SpecialToken.id}", found none`)
  for (const each of processors ?? []) requireTokens(each)
}

/** @internal Errors: TOKENIZER_INVALID. */
export function parseTokenizer(file: string): NativeTokenizer {
  try {
    requireTokens(postProcessorOf(readFileSync(file)))
    const native = Native.fromFile(file)
    native.disablePadding()
    native.disableTruncation()
    return native
  } catch (error) {
    throw new ConanError('TOKENIZER_INVALID', `${file}: ${(error as Error).message}`, { cause: error })
  }
}
