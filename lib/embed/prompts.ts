// Which prompt goes before a text, and how: as a prefix, or as the system message of a chat template.
import { Template } from '@huggingface/jinja'
import { ConanError, shown } from '../errors'
import type { ModelDirectory } from '../files/model-directory'

export interface PromptOptions {
  /** Name of one of the model's own prompts. */
  promptName?: string
  /** A prompt as it stands, put before every text. */
  prompt?: string
  /** A task in words, for models that take instructions; put into the shape that the model's own prompts have. */
  instruction?: string
}

/** The prompt for one call, or '' for none. */
export function choosePrompt(model: ModelDirectory, options: PromptOptions): string {
  const given = (['promptName', 'prompt', 'instruction'] as const).filter((key) => options[key] !== undefined)
  if (given.length === 0 && model.chat?.instruction !== undefined && model.defaultPromptName === undefined) return model.chat.instruction
  if (given.length > 1) throw new ConanError('INVALID_OPTION', `expected one of promptName, prompt and instruction, got ${given.join(' and ')}`)
  for (const key of given) if (typeof options[key] !== 'string') throw new ConanError('INVALID_OPTION', `${key}: expected a string, got ${shown(options[key])}`)
  if (options.prompt !== undefined) return options.prompt
  if (options.instruction !== undefined) return instructionPrompt(model, options.instruction)
  const name = options.promptName ?? model.defaultPromptName
  if (name === undefined) return ''
  if (!Object.hasOwn(model.prompts, name))
    throw new ConanError(
      'INVALID_OPTION',
      `promptName: expected one of ${Object.keys(model.prompts).join(', ') || '(this model has none)'}, got ${shown(name)}`,
    )
  return model.prompts[name] as string
}

function instructionPrompt(model: ModelDirectory, instruction: string): string {
  // Qwen3-VL-Embedding ends every instruction with a full stop.
  if (model.chat) return model.chat.instruction === undefined || /\p{P}$/u.test(instruction) ? instruction : `${instruction}.`
  for (const prompt of Object.values(model.prompts)) {
    const shape = /^(Instruct: ?)[\s\S]*?(\nQuery: ?)$/.exec(prompt)
    if (shape) return `${shape[1]}${instruction}${shape[2]}`
  }
  return `Instruct: ${instruction}\nQuery: `
}

/** A token that stands for a medium, and what frames it. */
interface Place {
  token: string
  start: string
  end: string
}

export type Placeholders = Record<'image' | 'video' | 'audio', Place | undefined>

/** The parts of an input as a prompt has them: how many of each kind. */
export interface Parts {
  text: string | undefined
  videos: number
  images: number
  audios: number
}

/**
 * A function from the parts of an input to what the tokenizer gets; a video, an image or a sound is one placeholder token there.
 * Without a chat template media stand framed after the prompt, before the text.
 */
export function promptRenderer(model: ModelDirectory, placeholders: Placeholders): (content: Parts, prompt: string) => string {
  const { chat } = model
  const kinds = (parts: Parts): (keyof Placeholders)[] => [
    ...repeated('video' as const, parts.videos),
    ...repeated('image' as const, parts.images),
    ...repeated('audio' as const, parts.audios),
  ]
  if (!chat) {
    const framed = (kind: keyof Placeholders) => {
      const { start, token, end } = placeholders[kind] as Place
      return start + token + end
    }
    return (parts, prompt) => prompt + kinds(parts).map(framed).join('') + (parts.text ?? '')
  }
  const template = new Template(chat.template)
  const part = (text: string) => ({ type: 'text', text })
  return (given, prompt) => {
    const media = kinds(given).map((type) => ({ type }))
    const words = given.text || (media.length ? undefined : chat.emptyText)
    const parts = [...media, ...(words === undefined ? [] : [part(words)])]
    const messages = [{ role: 'user', content: chat.format === 'flat' ? (words ?? '') : parts }] as { role: string; content: unknown }[]
    if (prompt) messages.unshift({ role: 'system', content: chat.format === 'flat' ? prompt : [part(prompt)] })
    return template.render({ ...chat.variables, messages })
  }
}

function repeated<T>(value: T, count: number): T[] {
  return Array.from({ length: count }, () => value)
}
