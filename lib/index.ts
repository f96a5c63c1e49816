// The public surface.
export type { CpuReport } from './binding'
export type { EmbedInput, Modality } from './embed/inputs'
export type { Precision, Vectors } from './embed/precision'
export { ConanError, type ErrorCode } from './errors'
export type { Similarity } from './files/model-directory'
export { type FuseOptions, type FuseReport, type FusionManifest, fuse, type ManifestTensor } from './fuse/fuse'
export { devices, type InspectReport, inspect } from './inspect'
export { type EmbedOptions, type EmbedResult, type LoadOptions, loadModel, type Model, type ModelInfo, type StreamedVector, type Usage } from './model'
