// Sizes of the recipe: the whole of it, and a reduced one (--reduced).
import path from 'node:path'

export const reduced = process.argv.includes('--reduced') || process.env.CONAN_NANO_REDUCED === '1'

/** Everything that the stages make. */
export const work = path.resolve(process.env.CONAN_NANO_WORK ?? path.join(__dirname, reduced ? 'work-reduced' : 'work'))

interface Settings {
  /** Spoken words. */
  words: number
  /** Samples of texts in the base's distillation, steps on sounds and pictures. */
  samples: number
  textScale: number
  gradedEpochs: number
  visionSteps: { taught: number; tower: number; both: number }
  views: number
  hearingSteps: number
  seeingSteps: number
  /** Of the study. */
  seeds: number
  steps: { image: number; video: number; document: number; projector: number; audio: number; recover: number; rehearse: number }
  batch: { image: number; video: number; document: number; audio: number }
  /** Rows of joint training, as a share of what all specialists together have seen: the whole would take as long as everything else. */
  joint: number
  /** Of the search for coefficients: multiples of the paper's, then values of each. */
  scales: number[]
  grid: number[]
  /** The paper's method and the controls of its recovery alone: without TIES, DARE, the curve over coefficients, gentle recovery, joint training without audio. */
  core: boolean
  /** Pairs of a task in validation. */
  validation: number
  /** Pairs of a task in the test, and of those whose media take long (films, pages, noises). */
  test: number
  slowTest: number
}

const whole: Settings = {
  words: 600,
  samples: 600_000,
  textScale: 1,
  gradedEpochs: 3,
  visionSteps: { taught: 440, tower: 150, both: 300 },
  views: 4,
  hearingSteps: 600,
  seeingSteps: 600,
  seeds: 3,
  steps: { image: 150, video: 80, document: 60, projector: 150, audio: 400, recover: 300, rehearse: 150 },
  batch: { image: 48, video: 32, document: 12, audio: 64 },
  joint: 0.33,
  scales: [0.6, 1, 1.5, 2],
  grid: [0.2, 0.4, 0.6, 0.8],
  core: false,
  validation: 120,
  test: 1800,
  slowTest: 1800,
}

const small: Settings = {
  words: 120,
  samples: 16_000,
  textScale: 0.03,
  gradedEpochs: 1,
  views: 1,
  hearingSteps: 120,
  seeingSteps: 20,
  visionSteps: { taught: 16, tower: 5, both: 20 },
  seeds: 1,
  steps: { image: 20, video: 15, document: 5, projector: 50, audio: 140, recover: 60, rehearse: 6 },
  batch: { image: 32, video: 24, document: 8, audio: 64 },
  joint: 0.15,
  scales: [1.5],
  grid: [0.8],
  core: true,
  validation: 30,
  test: 100,
  slowTest: 40,
}

export const settings: Settings = reduced ? small : whole
