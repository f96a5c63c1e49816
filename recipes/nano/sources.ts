// Where the recipe's data comes from, and which of it is for training, validation and test. CONAN_TEST_DATA names the directory of data
// sets (README.md says what is in it and which packages it was made from).
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'

export const data = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(__dirname, '../../../shared/data'))
export const datasets = path.join(data, 'datasets')
export function need(file: string): string {
  if (existsSync(file)) return file
  console.error(`nano: expected ${file}, found none: set CONAN_TEST_DATA (recipes/nano/README.md lists the data)`)
  process.exit(2)
}

export function jsonLines<T>(file: string): T[] {
  const bytes = readFileSync(need(file))
  const text = (file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('utf8')
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as T)
}

/** A number in [0, 1) that belongs to a name: splits by it stay the same whatever else changes. */
export const place = (name: string): number => createHash('sha256').update(name).digest().readUInt32LE(0) / 2 ** 32

export type Part = 'train' | 'validation' | 'test'

/** Where something of that name belongs. */
export function partOf(name: string): Part {
  const at = place(name.toLowerCase())
  return at < 0.75 ? 'train' : at < 0.85 ? 'validation' : 'test'
}

/** Sentences of a text, roughly. */
export const sentences = (text: string): string[] => text.split(/(?<=[.!?;:])\s+(?=\S)/)

export interface GradedPair {
  left: string
  right: string
  score: number
}

/** STS-B: pairs of sentences and how similar people found them, 0 to 5. */
export function stsb(part: 'train' | 'dev'): GradedPair[] {
  return readFileSync(need(path.join(datasets, `stsb/sts-${part}.csv`)), 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split('\t'))
    .map((cells) => ({ score: Number(cells[4]), left: cells[5] as string, right: cells[6] as string }))
}

interface Synset {
  lemmas: string[]
  gloss: string
  examples: string[]
}

/** Real texts by kind, without any label: none of STS-B's dev part, and of the pictures' names those that train. */
export function texts(): Record<string, string[]> {
  const synsets = jsonLines<Synset>(path.join(datasets, 'wordnet-gloss/synsets.jsonl.gz'))
  const packages = jsonLines<{ short: string; long: string }>(path.join(datasets, 'debian-descriptions/pairs.jsonl.gz'))
  const captions = jsonLines<{ caption: string }>(path.join(datasets, 'tuxpaint/items.jsonl')).map(({ caption }) => caption)
  const emoji = jsonLines<{ name: string; tags: string[] }>(path.join(datasets, 'fluent-emoji-3d/items.jsonl'))
  const clips = jsonLines<{ filename_words: string }>(path.join(datasets, 'openclipart/items.jsonl'))
  const pages = jsonLines<{ titles: string[]; text: string }>(path.join(datasets, 'visdoc-debian/items.jsonl'))
  const trains = (name: string) => partOf(name) === 'train'
  const kinds: Record<string, string[]> = {
    glosses: synsets.flatMap(({ lemmas, gloss }) => [gloss, `${lemmas[0]}: ${gloss}`]),
    examples: synsets.flatMap(({ examples }) => examples),
    words: synsets.flatMap(({ lemmas }) => [lemmas.join(', '), ...lemmas]),
    summaries: packages.map(({ short }) => short),
    descriptions: packages.flatMap(({ long }) => sentences(long)),
    pairs: stsb('train').flatMap(({ left, right }) => [left, right]),
    names: [
      ...captions.filter(trains),
      ...emoji.filter(({ name }) => trains(name)).flatMap(({ name, tags }) => [name, tags.join(', ')]),
      ...clips.map((clip) => clip.filename_words).filter(trains),
    ],
    pages: pages.flatMap(({ titles, text }) => [...titles, ...sentences(text)]),
  }
  const seen = new Set<string>()
  return Object.fromEntries(
    Object.entries(kinds).map(([kind, list]) => [
      kind,
      list.map((text) => text.replace(/\s+/g, ' ').trim()).filter((text) => text.length >= 2 && text.length <= 300 && !seen.has(text) && seen.add(text)),
    ]),
  )
}
