// Spoken words and short phrases by espeak-ng, in several voices, accents, speeds and pitches: WAV files in the work directory.
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, renameSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { datasets, jsonLines, type Part, place, work } from './sources'

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

/** So many words and phrases of WordNet, half of one word and half of two, chosen by their hashes. */
export function spokenTexts(count: number): string[] {
  const seen = new Set<string>()
  const lemmas = jsonLines<{ pos: string; lemmas: string[] }>(path.join(datasets, 'wordnet-gloss/synsets.jsonl.gz'))
    .filter(({ pos }) => pos === 'noun')
    .map(({ lemmas }) => lemmas[0] as string)
    .filter((lemma) => /^[a-z]{3,9}( [a-z]{3,8})?$/.test(lemma) && !seen.has(lemma) && seen.add(lemma))
    .sort((a, b) => place(a) - place(b))
  const [one, two] = [lemmas.filter((lemma) => !lemma.includes(' ')), lemmas.filter((lemma) => lemma.includes(' '))]
  return [...one.slice(0, Math.ceil(count / 2)), ...two.slice(0, Math.floor(count / 2))]
}

/** Makes what is not there yet. */
export async function speech(count: number): Promise<Spoken[]> {
  const folder = path.join(work, 'speech')
  mkdirSync(folder, { recursive: true })
  const all = (Object.entries(voices) as [Part, string[]][]).flatMap(([part, names]) =>
    names.flatMap((voice) =>
      spokenTexts(count).map((text): Spoken => ({ text, voice, part, file: path.join(folder, `${text.replace(' ', '_')}-${voice}.wav`) })),
    ),
  )
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
