// Long native work on a plan: aborted by a signal, with progress.
import { binding } from '../binding'
import { asConanError, ConanError } from '../errors'

export interface RunOptions {
  signal?: AbortSignal | undefined
  onProgress?: ((done: number, total: number) => void) | undefined
}

/** Runs a plan (see native/merge/fuse.h and geometry.h). What onProgress throws ends the work and is thrown here. */
export async function runPlan<T>(work: 'fuse' | 'geometry' | 'extractLora', plan: object, { signal, onProgress }: RunOptions): Promise<T> {
  const aborted = () => new ConanError('ABORTED', `${work} was aborted`, { cause: signal?.reason })
  if (signal?.aborted) throw aborted()
  const native = binding()
  const token = native.cancelToken()
  const stop = () => native.stop(token)
  let thrown: { error: unknown } | undefined
  signal?.addEventListener('abort', stop, { once: true })
  try {
    const text = await native[work](JSON.stringify(plan), token, (done, total) => {
      try {
        if (!thrown) onProgress?.(done, total)
      } catch (error) {
        thrown = { error }
        stop()
      }
    })
    if (thrown) throw thrown.error
    return JSON.parse(text)
  } catch (error) {
    if (thrown) throw thrown.error
    const known = asConanError(error)
    throw known.code === 'ABORTED' ? aborted() : known
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}
