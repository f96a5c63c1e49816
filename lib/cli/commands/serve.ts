// conan-embed serve: a model over HTTP.
import { loadModel } from '../../model'
import { serve as listen } from '../../server/server'
import { type Command, CommandError, computeArguments, computeFlags, integer, string } from '../command'

export const serve: Command = {
  summary: "answers requests for embeddings over HTTP, as OpenAI's clients send them",
  positionals: 'MODEL',
  options: {
    host: { type: 'string', help: 'ADDRESS (127.0.0.1: this machine alone)' },
    port: { type: 'string', help: 'N (8080; 0: any that is free)' },
    'api-key': { type: 'string', multiple: true, help: 'KEY a key that requests must have; may be repeated (or CONAN_API_KEY, with commas)' },
    name: { type: 'string', help: "NAME what the model is called (its directory's name)" },
    'max-body-bytes': { type: 'string', help: 'N of a request (64 MiB)' },
    'max-inputs': { type: 'string', help: 'N of a request (2048)' },
    'max-waiting': { type: 'string', help: 'N inputs that wait; with more, requests are turned away (8192)' },
    'max-file-bytes': { type: 'string', help: 'N of an image, video, document or sound (32 MiB)' },
    'max-input-pixels': { type: 'string', help: 'N of an image or a frame as it is stored (64 million)' },
    'max-seconds': { type: 'string', help: 'N of a video or a sound (600)' },
    'max-pages': { type: 'string', help: 'N of a document (16)' },
    'max-frames': { type: 'string', help: 'N taken of a video' },
    'max-pixels': { type: 'string', help: 'N of an image after resizing' },
    'total-pixels': { type: 'string', help: 'N of all frames of a video after resizing' },
    'max-tokens': { type: 'string', help: 'N of an input' },
    'remote-host': { type: 'string', multiple: true, help: 'HOST that media may be fetched from: example.com, *.example.com, *; may be repeated (none)' },
    'remote-private': { type: 'boolean', help: 'also from private networks and this machine' },
    'remote-timeout-ms': { type: 'string', help: 'N (10000)' },
    ...computeFlags,
    adapter: { type: 'string', multiple: true, help: 'DIR a PEFT directory to merge into the model; may be repeated' },
    json: { type: 'boolean', help: 'errors and the address as JSON' },
  },
  async run(args) {
    const [directory, ...rest] = args.positionals
    if (directory === undefined || rest.length) throw new CommandError('expected a model directory')
    const { values } = args
    /** Those that were given, by their names in the API. */
    const numbers = (...names: string[]): Record<string, number> =>
      Object.fromEntries(
        names.flatMap((name) => {
          const value = integer(args, name)
          return value === undefined ? [] : [[name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase()), value]]
        }),
      )
    const [host, name] = [string(args, 'host'), string(args, 'name')]
    const keys = (values['api-key'] as string[] | undefined) ?? process.env.CONAN_API_KEY?.split(',')
    await using model = await loadModel(directory, {
      ...computeArguments(args),
      ...numbers('max-tokens'),
      adapters: (values.adapter as string[] | undefined) ?? [],
      processor: numbers('max-frames', 'max-pixels', 'total-pixels'),
    })
    const server = await listen(model, {
      ...(host !== undefined && { host }),
      ...(name !== undefined && { name }),
      ...(keys && { apiKeys: keys }),
      ...numbers('port', 'max-body-bytes', 'max-inputs', 'max-waiting', 'max-file-bytes', 'max-input-pixels', 'max-seconds', 'max-pages'),
      ...numbers('remote-timeout-ms'),
      remoteHosts: (values['remote-host'] as string[] | undefined) ?? [],
      remotePrivate: values['remote-private'] === true,
    })
    const { device: where, dtype: how, dimensions } = model.info
    console.log(values.json ? JSON.stringify({ url: server.url }) : `${server.url}/v1/embeddings: ${dimensions} dimensions, ${how} on ${where}; Ctrl-C ends it`)
    await new Promise<void>((resolve) => {
      for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, resolve)
    })
    await server.close()
    return undefined
  },
}
