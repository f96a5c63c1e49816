// Sizes of the recipe: the whole of it, and one that takes a quarter of an hour (--reduced).
import path from 'node:path'

export const reduced = process.argv.includes('--reduced') || process.env.CONAN_NANO_REDUCED === '1'

/** Everything that the stages make. */
export const work = path.resolve(process.env.CONAN_NANO_WORK ?? path.join(__dirname, reduced ? 'work-reduced' : 'work'))

interface Settings {
  /** Spoken words. */
  words: number
  /** Samples of texts in the base's distillation, passes over pictures, steps on sounds. */
  samples: number
  textScale: number
  visionEpochs: number
  views: number
  hearingSteps: number
  /** Of the study. */
  seeds: number
  steps: { image: number; video: number; document: number; projector: number; audio: number; recover: number; rehearse: number }
  batch: { image: number; video: number; document: number; audio: number }
  /** Rows of joint training, as a share of what all specialists together have seen: the whole would take as long as everything else. */
  joint: number
  /** Pairs of a task in validation. */
  validation: number
  /** Pairs of a task in the test. */
  test: number
}

const whole: Settings = {
  words: 600,
  samples: 600_000,
  textScale: 1,
  visionEpochs: 4,
  views: 4,
  hearingSteps: 600,
  seeds: 3,
  steps: { image: 150, video: 80, document: 60, projector: 150, audio: 400, recover: 300, rehearse: 150 },
  batch: { image: 48, video: 32, document: 12, audio: 64 },
  joint: 0.33,
  validation: 120,
  test: 1800,
}

const small: Settings = {
  words: 200,
  samples: 80_000,
  textScale: 0.12,
  visionEpochs: 0.7,
  views: 2,
  hearingSteps: 250,
  seeds: 1,
  steps: { image: 60, video: 30, document: 15, projector: 80, audio: 200, recover: 150, rehearse: 40 },
  batch: { image: 32, video: 24, document: 8, audio: 64 },
  joint: 0.33,
  validation: 60,
  test: 300,
}

export const settings: Settings = reduced ? small : whole
