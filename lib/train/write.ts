// A trained model as a directory: the base's tensors, byte for byte where they did not train.
import { closeSync, mkdirSync, openSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { asFileError } from '../files/output'
import { copyFiles, writeIndex } from '../fuse/fuse'
import { runPlan } from '../fuse/native'
import { checkpointTensors, type Parent, weightsFolder } from '../fuse/parents'
import { elementBytes, shards } from '../fuse/plan'
import type { TrainableChoice } from './trainable'

/** adapter_config.json as PEFT writes it. */
export function writeAdapterConfig(directory: string, base: string, { lowRank, rank, alpha }: TrainableChoice): void {
  const config = {
    peft_type: 'LORA',
    task_type: null,
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    target_modules: lowRank.map(({ tensor }) => tensor.replace(/\.weight$/, '')),
    bias: 'none',
    fan_in_fan_out: false,
    use_dora: false,
    use_rslora: false,
    inference_mode: true,
    init_lora_weights: true,
    modules_to_save: null,
  }
  writeFileSync(path.join(directory, 'adapter_config.json'), `${JSON.stringify(config, null, 2)}\n`)
}

/**
 * `partial` becomes a model directory: the base with trained tensors (of the safetensors in `trained`) in their place, or with the
 * adapter in `trained` merged into it.
 */
export async function writeModel(base: Parent, trained: string, choice: TrainableChoice, partial: string, signal: AbortSignal | undefined): Promise<void> {
  const weights = weightsFolder(base.root)
  const place = path.join(partial, weights)
  try {
    mkdirSync(place, { recursive: true })
    const dense = new Set(choice.dense)
    const adapter = choice.lowRank.length > 0
    const tensors = [...base.tensors.values()]
      .sort((a, b) => elementBytes(b) - elementBytes(a))
      .map(({ name, shape, dtype }) => ({
        name,
        shape,
        dtype,
        algorithm: 'copy',
        options: {},
        parents: [{ checkpoint: dense.has(name) ? 1 : 0, tensor: name }],
      }))
    const { files, totalBytes } = shards(tensors, 5e9)
    const plan = {
      output: place,
      identity: 'train',
      threads: 0,
      seed: 0,
      checkpoints: [{ directory: base.directory, adapters: adapter ? [trained] : [] }, ...(adapter ? [] : [{ directory: trained, adapters: [] }])],
      files: files.map(({ name, tensors }) => ({ name, tensors })),
      tensors,
    }
    await runPlan('fuse', plan, { signal })
    for (const name of readdirSync(place)) if (name === 'fusion-journal.jsonl') rmSync(path.join(place, name))
    writeIndex({ files, tensors, totalBytes }, place)
    copyFiles(base.root, partial, base.name, weights)
  } catch (error) {
    throw asFileError(error)
  }
}

interface Stored {
  file: string
  begin: number
  end: number
}

/** Where the bytes of every tensor of a directory are. */
function storedTensors(directory: string): Map<string, Stored> {
  const out = new Map<string, Stored>()
  for (const file of new Set([...checkpointTensors(directory).values()].map(({ file }) => file))) {
    const descriptor = openSync(file, 'r')
    const length = Buffer.alloc(8)
    readSync(descriptor, length, 0, 8, 0)
    const header = Buffer.alloc(Number(length.readBigUInt64LE()))
    readSync(descriptor, header, 0, header.length, 8)
    closeSync(descriptor)
    for (const [name, entry] of Object.entries(JSON.parse(header.toString('utf8'))) as [string, { data_offsets: [number, number] }][])
      if (name !== '__metadata__') out.set(name, { file, begin: 8 + header.length + entry.data_offsets[0], end: 8 + header.length + entry.data_offsets[1] })
  }
  return out
}

/**
 * Names of the tensors whose bytes differ between two directories, or that only one has.
 *
 * @throws ConanError FILE_CORRUPT
 */
export function changedTensors(a: string, b: string): string[] {
  const [first, second] = [storedTensors(a), storedTensors(b)]
  const changed: string[] = []
  const piece = 1 << 22
  const [x, y] = [Buffer.alloc(piece), Buffer.alloc(piece)]
  const open = new Map<string, number>()
  const descriptor = (file: string) => {
    if (!open.has(file)) open.set(file, openSync(file, 'r'))
    return open.get(file) as number
  }
  try {
    for (const name of new Set([...first.keys(), ...second.keys()])) {
      const [s, t] = [first.get(name), second.get(name)]
      let same = s !== undefined && t !== undefined && s.end - s.begin === t.end - t.begin
      for (let at = 0; same && at < s!.end - s!.begin; at += piece) {
        const count = Math.min(piece, s!.end - s!.begin - at)
        readSync(descriptor(s!.file), x, 0, count, s!.begin + at)
        readSync(descriptor(t!.file), y, 0, count, t!.begin + at)
        same = x.subarray(0, count).equals(y.subarray(0, count))
      }
      if (!same) changed.push(name)
    }
  } finally {
    for (const each of open.values()) closeSync(each)
  }
  return changed
}
