// What trains, as data: which tensors of a checkpoint, whole or by LoRA.
import type { NativeTrainingPlan } from '../binding'
import { ConanError, shown } from '../errors'
import type { Parent } from '../fuse/parents'
import { inspect } from '../inspect'
import { oneOf, positive } from '../options'

export interface TrainableOptions {
  /** The audio projector alone, LoRA on all linear layers, or everything. */
  mode: 'projector' | 'lora' | 'full'
  /** Patterns (regular expressions) over tensor names: only what matches one, and nothing that matches one of `exclude`. */
  include?: string[]
  exclude?: string[]
  /** Of LoRA; default 32 each. The change is alpha / rank * B A. */
  rank?: number
  alpha?: number
  /** Of LoRA: share of the inputs of A that a step leaves out; default 0. One draw serves all tokens of a step. */
  dropout?: number
}

export interface TrainableChoice {
  dense: string[]
  lowRank: NativeTrainingPlan['lowRank']
  rank: number
  alpha: number
  dropout: number
}

/** What is no linear layer although it is a matrix. */
const notLinear = /embed|wte|wpe|position|lm_head|pooler|relative_attention_bias|LayerNorm|norm/i
/** Whisper's positions are sinusoids, and stay so. */
const fixed = /(^|\.)audio_tower\.embed_positions\./

function patterns(list: string[] | undefined, what: string): RegExp[] {
  if (list !== undefined && !(Array.isArray(list) && list.every((pattern) => typeof pattern === 'string')))
    throw new ConanError('INVALID_OPTION', `trainable.${what}: expected a list of regular expressions, got ${shown(list)}`)
  return (list ?? []).map((pattern) => {
    try {
      return new RegExp(pattern)
    } catch (error) {
      throw new ConanError('INVALID_OPTION', `trainable.${what}: expected regular expressions: ${(error as Error).message}`)
    }
  })
}

/** @throws ConanError INVALID_OPTION where nothing is left to train */
export function chooseTrainable(model: Parent, options: TrainableOptions): TrainableChoice {
  const mode = oneOf(options.mode, 'trainable.mode', ['projector', 'lora', 'full'] as const, 'lora')
  const [include, exclude] = [patterns(options.include, 'include'), patterns(options.exclude, 'exclude')]
  const rank = positive(options.rank, 'trainable.rank', 32)
  const alpha = options.alpha ?? rank
  if (!(alpha > 0 && Number.isFinite(alpha))) throw new ConanError('INVALID_OPTION', `trainable.alpha: expected a positive number, got ${shown(options.alpha)}`)
  const dropout = options.dropout ?? 0
  if (!(dropout >= 0 && dropout < 1)) throw new ConanError('INVALID_OPTION', `trainable.dropout: expected a number from 0 to below 1, got ${shown(dropout)}`)
  const unused = new Set(inspect(model.root).unused)
  const names = [...model.tensors.values()]
    .filter(({ name }) => !unused.has(name) && !fixed.test(name))
    .filter(({ name }) => (include.length === 0 || include.some((pattern) => pattern.test(name))) && !exclude.some((pattern) => pattern.test(name)))
  const isProjector = (name: string) => /(^|\.)audio_projector\./.test(name)
  const chosen =
    mode === 'projector'
      ? names.filter(({ name }) => isProjector(name))
      : mode === 'full'
        ? names
        : names.filter(({ name, shape }) => shape.length === 2 && name.endsWith('.weight') && !notLinear.test(name))
  if (chosen.length === 0)
    throw new ConanError(
      'INVALID_OPTION',
      `trainable: expected tensors to train by "${mode}", found none in ${model.directory}${mode === 'projector' ? ' (no audio_projector.*)' : ''}`,
    )
  const list = chosen.map(({ name }) => name)
  return mode === 'lora'
    ? { dense: [], lowRank: list.map((tensor) => ({ tensor, rank, scale: alpha / rank })), rank, alpha, dropout }
    : { dense: list, lowRank: [], rank, alpha, dropout }
}
