// Pictures, films, pages and sounds with what is said of them, and their split: names decide, so that what is tested on has a name that no
// training saw, in any of the sets (an emoji's picture and its film share one).
import { existsSync, mkdirSync, renameSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { randomNumbers } from '../../lib/train/sampler'
import { work } from './settings'
import { datasets, jsonLines, need, type Part, partOf, place } from './sources'
import { speech } from './speech'

export type Modality = 'image' | 'video' | 'document' | 'audio'

export interface Item {
  id: string
  part: Part
  /** Which task it belongs to. */
  task: string
  modality: Modality
  file: string
  /** The name, and other true things to say of it. */
  texts: string[]
}

/** "keycap: #" and the like are left out: their names say nothing. */
const sayable = (name: string) => /[a-z]{3}/i.test(name)

export function items(): Item[] {
  const out: Item[] = []
  const add = (task: string, modality: Modality, folder: string, file: string, id: string, texts: string[], part = partOf(texts[0] as string)) => {
    const real = texts.map((text) => text.replace(/\s+/g, ' ').trim()).filter(Boolean)
    if (real[0] && sayable(real[0])) out.push({ id: `${task}/${id}`, part, task, modality, file: need(path.join(datasets, folder, file)), texts: real })
  }
  interface Row {
    id: string
    image: string
    clip: string
    name: string
    tags: string[]
    caption: string
    filename_words: string
    titles: string[]
  }
  const rows = (folder: string) => jsonLines<Row>(path.join(datasets, folder, 'items.jsonl'))
  for (const { id, image, name, tags } of rows('fluent-emoji-3d')) add('emoji', 'image', 'fluent-emoji-3d', image, id, [name, tags.join(', ')])
  for (const { id, image, caption } of rows('tuxpaint').filter(({ image }) => image)) add('tuxpaint', 'image', 'tuxpaint', image, id, [caption])
  for (const { id, image, filename_words } of rows('openclipart')) add('clipart', 'image', 'openclipart', image, id, [filename_words])
  for (const { id, clip, name, tags } of rows('fluent-emoji-anim')) add('moving emoji', 'video', 'fluent-emoji-anim', clip, id, [name, tags.join(', ')])
  for (const { id, image, titles } of rows('visdoc-debian')) if (titles.length) add('pages', 'document', 'visdoc-debian', image, id, titles, partOf(id))
  return out
}

/**
 * Other views of a picture for training, as WebP files in the work directory: turned a little, cut, mirrored, on another ground. The first
 * is the picture itself.
 */
export async function views(item: Item, count: number): Promise<string[]> {
  const out = [item.file]
  const folder = path.join(work, 'views')
  mkdirSync(folder, { recursive: true })
  const { width = 128, height = 128 } = await sharp(item.file).metadata()
  const size = Math.max(width, height)
  for (let i = 1; i < count; i++) {
    const file = path.join(folder, `${item.id.replace(/[^\w-]+/g, '_')}-${i}.webp`)
    out.push(file)
    if (existsSync(file)) continue
    const random = randomNumbers(Math.floor(place(`${item.id} ${i}`) * 2 ** 32))
    const shade = () => Math.round(255 - 60 * random())
    const background = { r: shade(), g: shade(), b: shade() }
    const turned = sharp(item.file).rotate((random() - 0.5) * 24, { background })
    if (random() < 0.5) turned.flop()
    const bytes = await turned.toBuffer()
    const { width: w = size, height: h = size } = await sharp(bytes).metadata()
    const keep = 0.75 + 0.25 * random()
    const [cw, ch] = [Math.min(w, Math.max(16, Math.floor(w * keep))), Math.min(h, Math.max(16, Math.floor(h * keep)))]
    await sharp(bytes)
      .extract({ left: Math.floor((w - cw) * random()), top: Math.floor((h - ch) * random()), width: cw, height: ch })
      .resize(Math.max(96, Math.floor((size * cw) / Math.max(cw, ch) / 8) * 8), Math.max(96, Math.floor((size * ch) / Math.max(cw, ch) / 8) * 8), {
        fit: 'fill',
      })
      .modulate({ brightness: 0.85 + 0.3 * random(), saturation: 0.7 + 0.6 * random() })
      .webp({ quality: 85 })
      .toFile(`${file}.tmp`)
    renameSync(`${file}.tmp`, file)
  }
  return out
}

export interface Sound {
  task: string
  part: Part
  file: string
  text: string
}

/** Words by unheard voices, digits by unheard speakers, sounds of an unheard part of ESC-10. */
export async function sounds(words: number): Promise<Sound[]> {
  const spoken = (await speech(words)).map(({ text, part, file }) => ({ task: 'speech', part, file, text }))
  const speakers: Record<string, Part> = { nicolas: 'validation', yweweler: 'test' }
  const digits = jsonLines<{ audio: string; text: string; speaker: string }>(path.join(datasets, 'fsdd/items.jsonl')).map(({ audio, text, speaker }) => ({
    task: 'digits',
    part: speakers[speaker] ?? ('train' as const),
    file: path.join(datasets, 'fsdd', audio),
    text,
  }))
  const noises = jsonLines<{ id: string; audio: string; label: string; fold: number }>(path.join(datasets, 'esc10/items.jsonl')).map(
    ({ id, audio, label, fold }) => ({
      task: 'noises',
      part: fold === 3 ? ('test' as const) : place(id.replace(/-[A-Z]$/, '')) < 0.2 ? ('validation' as const) : ('train' as const),
      file: path.join(datasets, 'esc10/audio', path.basename(audio)),
      text: label.toLowerCase(),
    }),
  )
  return [...spoken, ...digits, ...noises]
}
