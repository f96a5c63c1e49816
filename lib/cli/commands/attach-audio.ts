// conan-embed attach-audio: a backbone, an encoder of sound and a projector as one model directory.
import { type AttachAudioOptions, attachAudio as attach } from '../../omni/attach-audio'
import { type Command, CommandError, integer, interruptible, string } from '../command'
import { progress } from '../progress'

export const attachAudio: Command = {
  summary: 'gives a model an encoder of sound and a projector',
  positionals: 'MODEL ENCODER --out DIR',
  options: {
    out: { type: 'string', short: 'o', help: 'DIR the directory to make; it must not exist, or be empty' },
    projector: { type: 'string', help: "DIR a projector's safetensors (a fresh projector)" },
    'hidden-size': { type: 'string', help: "N width between the fresh projector's layers (the mean of its ends)" },
    'hidden-act': { type: 'string', help: 'A gelu, gelu_pytorch_tanh, relu or silu (gelu)' },
    'no-bias': { type: 'boolean', help: 'a fresh projector without biases' },
    seed: { type: 'string', help: 'N of the fresh projector (0)' },
    dtype: { type: 'string', help: "T of the projector: float32, bfloat16 or float16 (the backbone's)" },
    'out-shard-size': { type: 'string', help: 'S largest weight file (5GB)' },
    'dry-run': { type: 'boolean', help: 'check everything, write nothing' },
    json: { type: 'boolean', help: 'the report as JSON' },
  },
  async run(args) {
    const [model, encoder, ...rest] = args.positionals
    const out = string(args, 'out')
    if (model === undefined || encoder === undefined || rest.length) throw new CommandError('expected a model and an encoder')
    if (out === undefined) throw new CommandError('--out: expected a directory')
    const bar = progress(args.values.json === true, 'MB')
    try {
      const report = await interruptible((signal) =>
        attach(model, encoder, {
          out,
          projector: string(args, 'projector'),
          hiddenSize: integer(args, 'hidden-size'),
          hiddenAct: string(args, 'hidden-act') as AttachAudioOptions['hiddenAct'],
          bias: args.values['no-bias'] !== true,
          seed: integer(args, 'seed'),
          dtype: string(args, 'dtype') as AttachAudioOptions['dtype'],
          outShardSize: string(args, 'out-shard-size'),
          dryRun: args.values['dry-run'] === true,
          signal,
          onProgress: ({ doneBytes, totalBytes }) => bar.update(Math.round(doneBytes / 1e6), Math.round(totalBytes / 1e6), doneBytes / 1e6),
        }),
      )
      bar.stop()
      const { projector, addedTokens, addedRows } = report
      if (args.values.json) console.log(JSON.stringify(report))
      else
        console.log(
          `${args.values['dry-run'] ? 'would write' : 'wrote'} ${report.directory}: ${report.encoder.modelType} with ${report.encoder.parameters} parameters, ` +
            `${projector.fresh ? 'a fresh' : 'the given'} projector ${projector.inputSize} -> ${projector.hiddenSize} -> ${projector.outputSize}, ` +
            `${addedTokens.length} tokens added, embeddings ${addedRows ? `longer by ${addedRows} rows` : 'as long as before'}`,
        )
      return undefined
    } finally {
      bar.stop()
    }
  },
}
