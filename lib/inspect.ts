// What a directory holds, and what this machine offers, without loading weights.
import { binding, type CpuReport, type GpuReport } from './binding'
import { parseTokenizer } from './embed/tokenizer'
import { asConanError } from './errors'
import { type ModelDirectory, modelPath, readModelDirectory } from './files/model-directory'

export interface InspectReport {
  directory: string
  modelType: string
  /** What stands before the architecture's own tensor names in this checkpoint. */
  prefix: string
  /** Sizes from config.json; null where it is of no architecture known here. */
  config: Record<'hidden' | 'layers' | 'heads' | 'kvHeads' | 'headDim' | 'intermediate' | 'vocabulary' | 'maxPositions', number> | null
  parameters: number
  bytes: number
  /** Parameters by dtype. */
  dtypes: Record<string, number>
  tensors: { name: string; dtype: string; shape: number[] }[]
  /** Tensors that the model does not use, such as a head. */
  unused: string[]
  /** Everything that would make loading fail: missing and misshapen tensors, contradictions. */
  problems: string[]
  pooling: string | null
  normalize: boolean | null
  dense: { inputs: number; outputs: number; bias: boolean; activation: string }[]
  maxTokens: number | null
  prompts: Record<string, string>
  defaultPromptName: string | null
}

/**
 * @throws ConanError MODEL_NOT_FOUND, FILE_CORRUPT where the directory cannot be read at all; lesser faults are in `problems`
 */
export function inspect(directory: string): InspectReport {
  const root = modelPath(directory)
  let read: ModelDirectory | undefined
  const problems: string[] = []
  try {
    read = readModelDirectory(root)
    parseTokenizer(read.tokenizerFile)
  } catch (error) {
    const known = asConanError(error)
    if (known.code === 'MODEL_NOT_FOUND') throw known
    problems.push(known.message)
  }
  try {
    const { model_type, ...native } = JSON.parse(binding().inspect(read?.directory ?? root))
    return {
      directory: read?.directory ?? root,
      modelType: model_type,
      ...native,
      problems: [...problems, ...native.problems],
      pooling: read?.pooling ?? null,
      normalize: read?.normalize ?? null,
      dense: read?.dense.map(({ directory: _, ...layer }) => layer) ?? [],
      maxTokens: read?.maxTokens ?? null,
      prompts: read?.prompts ?? {},
      defaultPromptName: read?.defaultPromptName ?? null,
    }
  } catch (error) {
    throw asConanError(error)
  }
}

export type DeviceReport = { device: 'cpu'; cpu: CpuReport } | { device: string; gpu: GpuReport } | { device: 'cuda'; unavailable: string }

/** The compute devices of this machine: what was chosen and why, and why there is no GPU. */
export function devices(): DeviceReport[] {
  try {
    return [
      { device: 'cpu', cpu: binding().cpu() },
      ...binding()
        .gpus()
        .map((gpu): DeviceReport => (gpu.device === '' ? { device: 'cuda', unavailable: gpu.name } : { device: gpu.device, gpu })),
    ]
  } catch (error) {
    throw asConanError(error)
  }
}
