// Rows of the study: what each specialist learns, and what is asked of every model, by part.
import path from 'node:path'
import type { DatasetSource, EmbedInput } from '../../lib'
import { items, type Modality, type Sound, sounds, views } from './media'
import { datasets, jsonLines, type Part, place, stsb } from './sources'
import { newWords } from './speech'

/** A sample of so many, the same every time. */
function some<T>(list: T[], most: number, name: (item: T) => string): T[] {
  return list.length <= most ? list : [...list].sort((a, b) => place(name(a)) - place(name(b))).slice(0, most)
}

/** What a specialist of a modality learns from: its own training part and nothing else. */
export async function trainingData(modality: Modality, words: number): Promise<DatasetSource[]> {
  if (modality === 'audio') {
    const all = (await sounds(words)).filter(({ part }) => part === 'train')
    return [
      { name: 'speech', weight: 8 },
      { name: 'digits', weight: 1 },
      { name: 'noises', weight: 1 },
    ].map((source) => ({
      ...source,
      modality,
      rows: all.filter(({ task }) => task === source.name).map(({ file, text }) => ({ query: { audio: file }, positive: text })),
    }))
  }
  const own = items().filter((item) => item.modality === modality && item.part === 'train')
  const rows: object[] = []
  for (const item of own) {
    const files = modality === 'image' ? await views(item, 4) : [item.file]
    const said = [...new Set([item.texts[0] as string, ...item.texts.slice(1), ...(item.task === 'pages' ? [] : [item.texts.join(', ')])])]
    for (const [i, file] of files.entries())
      for (const [j, text] of said.entries())
        if (modality !== 'image' || (i + j) % said.length === 0) rows.push({ query: text, positive: modality === 'video' ? { video: file } : { image: file } })
  }
  return [{ name: modality, modality, rows }]
}

/** Texts that mean the same: a package's short description and the first sentence of its long one, a word's gloss and its names. */
export function textPairs(most: number): DatasetSource {
  const packages = jsonLines<{ short: string; long: string }>(path.join(datasets, 'debian-descriptions/pairs.jsonl.gz'))
  const synsets = jsonLines<{ lemmas: string[]; gloss: string }>(path.join(datasets, 'wordnet-gloss/synsets.jsonl.gz'))
  const rows = [
    ...some(packages, most / 4, ({ short }) => short).map(({ short, long }) => ({
      query: short,
      positive: (long.split(/(?<=\.)\s/)[0] as string).slice(0, 300),
    })),
    ...some(synsets, most / 4, ({ gloss }) => gloss).map(({ lemmas, gloss }) => ({ query: lemmas.join(', '), positive: gloss.slice(0, 300) })),
    ...stsb('train')
      .filter(({ score }) => score >= 4)
      .map(({ left, right }) => ({ query: left, positive: right })),
  ]
  return { name: 'text', modality: 'text', rows }
}

/** Pairs whose halves look for each other. */
export interface Pair {
  task: string
  modality: Modality | 'cross'
  query: EmbedInput
  positive: EmbedInput
}

/** ESC-10's labels and the pictures that show the same. */
const shown: Record<string, string> = {
  'dog bark': 'dog face',
  rooster: 'rooster',
  rain: 'cloud with rain',
  'fire crackling': 'fire',
  'baby cry': 'baby',
  'clock tick': 'mantelpiece clock',
  helicopter: 'helicopter',
  chainsaw: 'carpentry saw',
}

/** Tasks whose media take long to look at or to listen to. */
const slow = new Set(['moving emoji', 'pages', 'noises', 'noise to picture'])

/**
 * Everything that is asked of a model, of one part. `most`: at most so many pairs a task, `mostSlow` where its media take long.
 * Names are unseen ones in every visual task; spoken words come from unheard voices, and in "new words" they are unheard words as well.
 */
export async function questions(part: Part, words: number, most = Number.POSITIVE_INFINITY, mostSlow = most): Promise<Pair[]> {
  const all = items()
  const pairs: Pair[] = all
    .filter((item) => item.part === part)
    .map(({ task, modality, file, texts }) => ({
      task,
      modality,
      query: texts[0] as string,
      positive: modality === 'video' ? { video: file } : { image: file },
    }))
  const heard = (await sounds(words)).filter((sound) => sound.part === part)
  const spoken = ({ task, file, text }: Sound): Pair => ({ task, modality: 'audio', query: { audio: file }, positive: text })
  pairs.push(...heard.map(spoken))
  if (part === 'test') {
    pairs.push(...(await newWords(words)).map(({ file, text }) => spoken({ task: 'new words', part, file, text })))
    const picture = (name: string) => all.find((item) => item.task === 'emoji' && item.texts[0]?.toLowerCase() === name)?.file
    for (const { task, file, text } of heard) {
      const image = picture(task === 'noises' ? (shown[text] ?? '') : text)
      if (image)
        pairs.push({ task: task === 'noises' ? 'noise to picture' : 'word to picture', modality: 'cross', query: { audio: file }, positive: { image } })
    }
  }
  const out: Pair[] = []
  for (const task of new Set(pairs.map((pair) => pair.task)))
    out.push(
      ...some(
        pairs.filter((pair) => pair.task === task),
        slow.has(task) ? mostSlow : most,
        (pair) => JSON.stringify(pair),
      ),
    )
  return out
}
