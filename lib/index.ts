// The public surface.
export type { CpuReport, GpuReport } from './binding'
export type { EmbedInput, MediaInput, Modality } from './embed/inputs'
export type { Precision, Vectors } from './embed/precision'
export { type Hit, type SearchVectorsOptions, searchVectors } from './embed/search'
export { ConanError, type ErrorCode } from './errors'
export { type EvaluateOptions, evaluate, type Task, type TaskResult, type TaskType } from './eval/evaluate'
export type { Similarity } from './files/model-directory'
export { type DriftOptions, type DriftReport, drift, type LayerDirection, type TaskVectorGeometry } from './fuse/drift'
export { driftHtml } from './fuse/drift-report'
export { type ExtractLoraOptions, type ExtractLoraReport, extractLora } from './fuse/extract-lora'
export { type FuseOptions, type FuseReport, type FusionManifest, fuse, type ManifestTensor } from './fuse/fuse'
export type { RetrievalScore } from './fuse/probe'
export { type SearchCandidate, type SearchOptions, type SearchReport, searchCoefficients } from './fuse/search'
export { type DeviceReport, devices, type InspectReport, inspect } from './inspect'
export type { AudioInput, AudioSamples } from './media/audio'
export { type DocumentPage, documentPages, type PageOptions } from './media/document'
export type { ImageInput, RawImage } from './media/image'
export type { ProcessorOptions } from './media/processor'
export { type RemoteFetch, type RemoteFetchOptions, remoteFetch } from './media/remote'
export type { VideoFrames, VideoInput } from './media/video'
export {
  type EmbedOptions,
  type EmbedResult,
  type InputError,
  type LoadOptions,
  loadModel,
  type Model,
  type ModelInfo,
  type StreamedVector,
  type Usage,
} from './model'
export { type AttachAudioOptions, type AttachAudioReport, attachAudio } from './omni/attach-audio'
export { type ServeOptions, type Serving, serve } from './server/server'
export type { Dataset, DatasetSource, TrainingRow } from './train/data'
export { type MineOptions, type MineReport, mineNegatives } from './train/mine'
export type { Sampling } from './train/sampler'
export { recoverProjector, rehearse, trainSpecialist } from './train/stages'
export type { LogEntry, TrainOptions, TrainReport } from './train/train'
export { trainingHtml } from './train/train'
export type { TrainableOptions } from './train/trainable'
