// Spoken words and short phrases by espeak-ng, in several voices, accents, speeds and pitches: WAV files in the work directory.
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, renameSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { work } from './settings'
import { datasets, jsonLines, type Part, partOf, place } from './sources'

const run = promisify(execFile)

/** Voices by part: those of validation and test speak nowhere else. */
export const voices: Record<Part, string[]> = {
  train: [
    'en-us+m1',
    'en-gb+m3',
    'en-gb-scotland+m5',
    'en-us+f1',
    'en-gb-x-rp+f2',
    'en-gb-x-gbclan+m7',
    'en-us+f4',
    'en-gb+Alicia',
    'en-us+Andy',
    'en-gb-x-rp+Edward',
  ],
  validation: ['en-gb+m2', 'en-us+f3'],
  test: ['en-us+m4', 'en-gb-x-rp+f5', 'en-gb+Michael'],
}

export interface Spoken {
  text: string
  voice: string
  part: Part
  file: string
}

/** Words and phrases of WordNet in an order of their own: numbers `from` to `to` of it, half of them of one word and half of two. */
export function spokenTexts(from: number, to: number): string[] {
  const seen = new Set<string>()
  const lemmas = jsonLines<{ pos: string; lemmas: string[] }>(path.join(datasets, 'wordnet-gloss/synsets.jsonl.gz'))
    .filter(({ pos }) => pos === 'noun')
    .map(({ lemmas }) => lemmas[0] as string)
    .filter((lemma) => /^[a-z]{3,9}( [a-z]{3,8})?$/.test(lemma) && !seen.has(lemma) && seen.add(lemma))
    .sort((a, b) => place(a) - place(b))
  const [one, two] = [lemmas.filter((lemma) => !lemma.includes(' ')), lemmas.filter((lemma) => lemma.includes(' '))]
  return [...one.slice(Math.ceil(from / 2), Math.ceil(to / 2)), ...two.slice(Math.floor(from / 2), Math.floor(to / 2))]
}

/** Names of things that there are pictures of, of the names that train; half as many as `count`. */
export function everydayTexts(count: number): string[] {
  return jsonLines<{ name: string }>(path.join(datasets, 'fluent-emoji-3d/items.jsonl'))
    .map(({ name }) => name.toLowerCase())
    .filter((name) => partOf(name) === 'train' && /^[a-z]{3,10}( [a-z]{3,8})?$/.test(name))
    .sort((a, b) => place(a) - place(b))
    .slice(0, count / 2)
}

/** The first `count` words and the everyday ones in all voices; makes what is not there yet. */
export function speech(count: number): Promise<Spoken[]> {
  const texts = [...new Set([...spokenTexts(0, count), ...everydayTexts(count)])]
  return speak((Object.keys(voices) as Part[]).flatMap((part) => voices[part].flatMap((voice) => texts.map((text) => ({ text, voice, part })))))
}

/** 200 words that no training of `count` words has heard, in the voices of the test. */
export function newWords(count: number): Promise<Spoken[]> {
  return speak(voices.test.flatMap((voice) => spokenTexts(count, count + 200).map((text) => ({ text, voice, part: 'test' as const }))))
}

async function speak(wanted: Omit<Spoken, 'file'>[]): Promise<Spoken[]> {
  const folder = path.join(work, 'speech')
  mkdirSync(folder, { recursive: true })
  const all = wanted.map((spoken) => ({ ...spoken, file: path.join(folder, `${spoken.text.replace(' ', '_')}-${spoken.voice}.wav`) }))
  const missing = all.filter(({ file }) => !existsSync(file))
  const worker = async () => {
    for (let next = missing.pop(); next; next = missing.pop()) {
      const at = place(`${next.text} ${next.voice}`)
      const [speed, pitch] = [Math.round(135 + 60 * at), Math.round(35 + 30 * ((at * 1000) % 1))]
      await run('espeak-ng', ['-v', next.voice, '-s', String(speed), '-p', String(pitch), '-w', `${next.file}.tmp`, next.text])
      renameSync(`${next.file}.tmp`, next.file)
    }
  }
  await Promise.all([worker(), worker(), worker()])
  return all
}
