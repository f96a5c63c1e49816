// Models that number their tokens differently: which rows of which parent's embeddings belong to a token, and the
// tokenizer of the union.
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { type Parent, textConfig } from './parents'

interface AddedToken {
  id: number
  content: string
  special?: boolean
}

export interface Vocabulary {
  parent: Parent
  ids: Map<string, number>
  /** Whole text of tokenizer.json. */
  text: string
  added: AddedToken[]
}

/** undefined where the directory has no tokenizer.json. */
export function readVocabulary(parent: Parent, known: Vocabulary[] = []): Vocabulary | undefined {
  const file = [parent.directory, parent.root].map((directory) => path.join(directory, 'tokenizer.json')).find(existsSync)
  if (!file) return undefined
  const text = readFileSync(file, 'utf8')
  const same = known.find((other) => other.text === text)
  if (same) return { ...same, parent }
  let tokenizer: { model?: { vocab?: Record<string, number> | [string, number][] }; added_tokens?: AddedToken[] }
  try {
    tokenizer = JSON.parse(text)
  } catch (error) {
    throw new ConanError('TOKENIZER_INVALID', `${file}: not valid JSON: ${(error as Error).message}`, { cause: error })
  }
  const vocab = tokenizer.model?.vocab ?? {}
  const ids = new Map<string, number>(Array.isArray(vocab) ? vocab.map(([token], id) => [token, id]) : Object.entries(vocab))
  const added = tokenizer.added_tokens ?? []
  for (const { content, id } of added) ids.set(content, id)
  return { parent, ids, text, added }
}

/** A token that two vocabularies number differently, or a number they give to different tokens. */
export function conflict(a: Vocabulary, b: Vocabulary): string | undefined {
  if (a.ids === b.ids) return undefined
  const tokens = new Map([...a.ids].map(([token, id]) => [id, token]))
  for (const [token, id] of b.ids) {
    const there = a.ids.get(token)
    if (there !== undefined && there !== id) return `token ${shown(token)} is ${there} in ${a.parent.name} and ${id} in ${b.parent.name}`
    const other = tokens.get(id)
    if (other !== undefined && other !== token) return `token ${id} is ${shown(other)} in ${a.parent.name} and ${shown(token)} in ${b.parent.name}`
  }
  return undefined
}

/** Whether a tensor has one row a token. */
export function isVocabularyTensor(parent: Parent, name: string): boolean {
  const rows = textConfig(parent.config).vocab_size
  return parent.tensors.get(name)?.shape[0] === rows && /embed|wte|lm_head|decoder\.(weight|bias)$|predictions\.bias$/.test(name) && !/position|type/.test(name)
}

export interface OutputVocabulary {
  /** Rows of the output's embeddings. */
  rows: number
  ids: Map<string, number>
  /** tokenizer.json, where it is not simply a parent's. */
  tokenizer?: string
  /** Whose tokenizer files are the output's. */
  owner: Parent
}

/** The vocabulary of the fused model. `source`: 'union', or the model whose vocabulary it is; `first` is the base or first model. */
export function outputVocabulary(source: 'union' | Vocabulary, first: Vocabulary, all: Vocabulary[], padToMultipleOf: number): OutputVocabulary {
  const pad = (rows: number) => Math.ceil(rows / padToMultipleOf) * padToMultipleOf
  const rowsOf = ({ parent, ids }: Vocabulary) =>
    Math.max(Number(textConfig(parent.config).vocab_size ?? 0), [...ids.values()].reduce((a, b) => Math.max(a, b), -1) + 1)
  if (source !== 'union') return { rows: pad(rowsOf(source)), ids: source.ids, owner: source.parent }
  const ids = new Map(first.ids)
  const more: AddedToken[] = []
  let next = [...ids.values()].reduce((a, b) => Math.max(a, b), -1) + 1
  for (const vocabulary of all) {
    const inner = [...vocabulary.ids.keys()].filter((token) => !ids.has(token) && !vocabulary.added.some(({ content }) => content === token))
    if (inner.length)
      throw new ConanError(
        'TOKENIZER_INVALID',
        `tokenizer_source: union: expected vocabularies that differ in added tokens, but ${vocabulary.parent.name} has ${inner.length} other tokens that ${first.parent.name} lacks, such as ${shown(inner[0])}; choose one model's tokenizer`,
      )
    for (const token of vocabulary.added) {
      if (ids.has(token.content)) continue
      ids.set(token.content, next)
      more.push({ ...token, id: next++ })
    }
  }
  if (more.length === 0) return { rows: pad(rowsOf(first)), ids, owner: first.parent }
  const tokenizer = JSON.parse(first.text)
  tokenizer.added_tokens = [...(tokenizer.added_tokens ?? []), ...more]
  return { rows: pad(Math.max(rowsOf(first), next)), ids, tokenizer: JSON.stringify(tokenizer), owner: first.parent }
}

/** Rows of the output taken from rows of parents (indices into the list of vocabularies): [count, [[parent, first row]]]; the mean of several. */
export type RowRun = [count: number, from: [parent: number, row: number][]]

/**
 * For one parent: its own row of each token; where it lacks the token the base's (no change, then), else the mean of those
 * that have it. Rows without a token come from the base, or are zero.
 */
export function rowsFor(own: number, vocabularies: Vocabulary[], base: number, output: OutputVocabulary): RowRun[] {
  const tokens: (string | undefined)[] = new Array(output.rows)
  for (const [token, id] of output.ids) if (id < output.rows) tokens[id] = token
  const baseRows = Number(textConfig(vocabularies[base]!.parent.config).vocab_size)
  const runs: RowRun[] = []
  for (let row = 0; row < output.rows; row++) {
    const token = tokens[row]
    let from: [number, number][] = []
    if (token === undefined) {
      if (row < baseRows) from = [[base, row]]
    } else {
      const rowIn = (index: number) => vocabularies[index]!.ids.get(token)
      const at = [own, base].find((index) => rowIn(index) !== undefined)
      if (at !== undefined) from = [[at, rowIn(at) as number]]
      else
        for (const index of vocabularies.keys()) {
          const there = rowIn(index)
          if (there !== undefined) from.push([index, there])
        }
    }
    const last = runs.at(-1)
    const goesOn =
      last && last[1].length === from.length && from.length < 2 && from.every(([p, r], i) => last[1][i]![0] === p && last[1][i]![1] + last[0] === r)
    if (goesOn) last[0]++
    else runs.push([1, from])
  }
  return runs
}
