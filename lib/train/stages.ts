// The three stages of the method, as settings of one training run: a specialist from a base, Projector Recovery, balanced rehearsal.
import type { EmbedInput } from '../embed/inputs'
import { ConanError } from '../errors'
import { computeOptions, loadModel } from '../model'
import { requireOptions } from '../options'
import { readData } from './data'
import { type TrainOptions, type TrainReport, train } from './train'

/**
 * A specialist of one modality: LoRA of rank 32 on all linear layers (where nothing else is said), InfoNCE at temperature 0.02 in both
 * directions, merged into dense weights in the end; the adapter lies beside them in adapter/.
 *
 * @throws ConanError as train
 */
export async function trainSpecialist(options: TrainOptions): Promise<TrainReport> {
  requireOptions(options)
  return train({ ...options, trainable: options.trainable ?? { mode: 'lora' } }, 'train')
}

/**
 * Projector Recovery: all parameters of the audio projector and nothing else; backbone and encoder are frozen, and the encoder's features
 * are kept on disk, so that an epoch costs the backbone alone. Afterwards every other tensor is checked to be the same bytes, and vectors
 * of inputs without sound to be the same bits.
 *
 * @throws ConanError as train; INVALID_OPTION where `trainable` asks for anything else
 */
export async function recoverProjector(options: TrainOptions): Promise<TrainReport> {
  requireOptions(options)
  if (options.trainable && options.trainable.mode !== 'projector')
    throw new ConanError('INVALID_OPTION', `recover: expected trainable.mode "projector", got "${options.trainable.mode}"`)
  const inputs = await withoutSound(options)
  const vectors = async (directory: string) => {
    await using model = await loadModel(directory, computeOptions(options))
    return (await model.embed(inputs)).vectors
  }
  const before = inputs.length ? await vectors(options.model) : undefined
  const report = await train({ learningRate: 1e-3, ...options, trainable: { ...options.trainable, mode: 'projector' } }, 'recover')
  if (before) {
    const after = await vectors(report.directory)
    if (!before.every((value, i) => Object.is(value, after[i])))
      throw new ConanError('INTERNAL', `${report.directory}: vectors of inputs without sound have changed`)
  }
  return report
}

/** Some inputs of the data that hold no sound. */
async function withoutSound({ data }: TrainOptions): Promise<EmbedInput[]> {
  const rows = (await readData(data)).flatMap(({ rows }) => rows.slice(0, 100))
  const all = rows.flatMap(({ query, positives }) => [query, ...positives])
  return all.filter((input) => typeof input === 'string' || input.audio === undefined).slice(0, 8)
}

/**
 * Balanced rehearsal from the recovered model: LoRA on the language model and the vision tower over mixed data, every modality equally
 * often, learning rate 1e-5, 2000 steps. `anchor` pulls towards the recovered model.
 *
 * @throws ConanError as train
 */
export async function rehearse(options: TrainOptions): Promise<TrainReport> {
  requireOptions(options)
  const steps = options.steps === undefined && options.epochs === undefined ? { steps: 2000 } : {}
  const exclude = ['audio_tower\\.', 'audio_projector\\.', ...(options.trainable?.exclude ?? [])]
  return train({ sampling: 'equal', learningRate: 1e-5, ...steps, ...options, trainable: { mode: 'lora', ...options.trainable, exclude } }, 'rehearse')
}
