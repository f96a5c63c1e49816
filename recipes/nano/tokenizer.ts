// Byte-level BPE (Sennrich et al. 2016, as GPT-2 and Qwen use it) learnt from the recipe's texts in lower case, as a tokenizer.json.

/** GPT-2's printable stand-ins for the 256 bytes. */
function byteCharacters(): string[] {
  const printable = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174
  let next = 256
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++))
}

const words = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu

export const special = [
  '<|endoftext|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|image_pad|>',
  '<|video_pad|>',
  '<|audio_start|>',
  '<|audio_end|>',
  '<|audio_pad|>',
  '<|AUDIO|>',
] as const

/** Learns `size` tokens, special ones included, and returns the file's content. */
export function learnTokenizer(texts: Iterable<string>, size: number): string {
  const characters = byteCharacters()
  const counts = new Map<string, number>()
  for (const text of texts) for (const [word] of ` ${text.toLowerCase().normalize('NFC')}`.matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1)
  const vocabulary = new Map<string, number>(characters.map((character, b) => [character, b]))
  const list = [...counts].map(([word, count]) => ({ parts: [...Buffer.from(word)].map((b) => characters[b] as string), count }))
  const pairs = new Map<string, { count: number; words: Set<number> }>()
  const change = (i: number, sign: number) => {
    const { parts, count } = list[i]!
    for (let p = 0; p + 1 < parts.length; p++) {
      const key = `${parts[p]} ${parts[p + 1]}`
      let pair = pairs.get(key)
      if (!pair) pairs.set(key, (pair = { count: 0, words: new Set() }))
      pair.count += sign * count
      if (sign > 0) pair.words.add(i)
      if (pair.count === 0) pairs.delete(key)
    }
  }
  for (let i = 0; i < list.length; i++) change(i, 1)
  const merges: string[] = []
  while (vocabulary.size < size - special.length) {
    let best = ''
    let most = 1
    for (const [key, { count }] of pairs) if (count > most || (count === most && key < best)) [best, most] = [key, count]
    if (best === '') break
    const [left, right] = best.split(' ') as [string, string]
    const merged = left + right
    merges.push(best)
    if (!vocabulary.has(merged)) vocabulary.set(merged, vocabulary.size)
    for (const i of pairs.get(best)!.words) {
      change(i, -1)
      const { parts } = list[i]!
      for (let p = 0; p + 1 < parts.length; p++) if (parts[p] === left && parts[p + 1] === right) parts.splice(p, 2, merged)
      change(i, 1)
    }
  }
  const first = vocabulary.size
  const added = special.map((content, i) => ({ id: first + i, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }))
  const end = special[0]
  const json = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'Lowercase' }] },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: end, type_id: 0 } }],
      pair: [
        { Sequence: { id: 'A', type_id: 0 } },
        { SpecialToken: { id: end, type_id: 0 } },
        { Sequence: { id: 'B', type_id: 0 } },
        { SpecialToken: { id: end, type_id: 0 } },
      ],
      special_tokens: { [end]: { id: end, ids: [first], tokens: [end] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(vocabulary),
      merges,
    },
  }
  return `${JSON.stringify(json, null, 1)}\n`
}

/** The text that a token stands for. */
export function textOf(token: string): string {
  const bytes = new Map(byteCharacters().map((character, b) => [character, b]))
  return Buffer.from([...token].map((character) => bytes.get(character) ?? 32)).toString('utf8')
}
