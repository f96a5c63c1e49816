// Work on a thread of its own, asked for by messages {id, ...} and answered {id, value} or {id, error}: for decoders that would hold
// up the main thread. A thread starts when it is first asked, and keeps no process alive.
import os from 'node:os'
import path from 'node:path'
import { parentPort, Worker } from 'node:worker_threads'
import { packageRoot } from '../binding'
import { asConanError, ConanError, type ErrorCode } from '../errors'

interface Answer {
  id: number
  value?: unknown
  error?: { code: ErrorCode; message: string }
}

export class Thread<Request extends object> {
  private worker: Worker | undefined
  private readonly pending = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>()
  private next = 0

  /** `name`: of the file in dist/. */
  constructor(private readonly name: string) {}

  /** Requests that are not answered yet. */
  get load(): number {
    return this.pending.size
  }

  /** @throws ConanError what the work threw, INTERNAL where it was something else */
  ask<T>(request: Request): Promise<T> {
    this.worker ??= this.start()
    const { worker } = this
    const id = this.next++
    if (this.pending.size === 0) worker.ref()
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject })
      worker.postMessage({ id, request })
    })
  }

  private start(): Worker {
    const worker = new Worker(path.join(packageRoot(), 'dist', this.name))
    worker.unref()
    worker.on('message', ({ id, value, error }: Answer) => {
      const { resolve, reject } = this.pending.get(id)!
      this.pending.delete(id)
      if (this.pending.size === 0) worker.unref()
      if (error) reject(new ConanError(error.code, error.message))
      else resolve(value as never)
    })
    const fail = (error: Error) => {
      if (this.worker !== worker) return
      this.worker = undefined // the next request starts another
      for (const { reject } of this.pending.values()) reject(new ConanError('INTERNAL', `${this.name}: ${error.message}`, { cause: error }))
      this.pending.clear()
    }
    worker.on('error', fail)
    worker.on('exit', (code) => fail(new Error(`ended with code ${code}`)))
    return worker
  }
}

/** Several that do the same work: a quarter as many as there are processors, so that models are not kept waiting for what they are fed. */
export class Threads<Request extends object> {
  private readonly all: Thread<Request>[]

  constructor(name: string, count = Math.min(8, Math.max(1, os.availableParallelism() >> 2))) {
    this.all = Array.from({ length: count }, () => new Thread(name))
  }

  /** The one that has the least to do. */
  least(): Thread<Request> {
    return this.all.reduce((least, each) => (each.load < least.load ? each : least))
  }
}

/** The other side: answers every request; `moved` are the buffers of a value that need not be copied. */
export function serve<Request>(answer: (request: Request) => Promise<{ value: unknown; moved?: ArrayBuffer[] }>): void {
  const port = parentPort
  port?.on('message', async ({ id, request }: { id: number; request: Request }) => {
    try {
      const { value, moved } = await answer(request)
      port.postMessage({ id, value }, moved)
    } catch (error) {
      const { code, message } = asConanError(error)
      port.postMessage({ id, error: { code, message } })
    }
  })
}
