// Inputs of requests that come at the same time go through the model together: small requests fill a pass, a large one does not hold up
// the others.
import type { EmbedInput } from '../embed/inputs'
import type { Vectors } from '../embed/precision'
import { asConanError, ConanError } from '../errors'
import type { EmbedOptions, Model } from '../model'

/** An input, and how it is to be embedded. */
export interface Asked {
  input: EmbedInput
  options: EmbedOptions
}

export type Outcome = { vector: Vectors; tokens: number } | { error: ConanError }

interface Ticket extends Asked {
  /** Inputs of one key go together. */
  key: string
  done(outcome: Outcome): void
}

/** Inputs of one call of the model, and those that one request has among them at most. */
const most = 256
const share = 64
/** Calls at one time: one is computed while the media of the next are decoded. */
const calls = 2

export class Queue {
  waiting = 0
  private running = 0
  private requests: Ticket[][] = []
  private readonly idle: (() => void)[] = []
  /** Inputs a second, lately. */
  private rate = 0

  constructor(
    private readonly model: Model,
    private readonly maxWaiting: number,
  ) {}

  get full(): boolean {
    return this.waiting >= this.maxWaiting
  }

  /** After how many seconds there should be room again. */
  get secondsLeft(): number {
    return Math.min(60, Math.max(1, Math.ceil(this.waiting / Math.max(1, this.rate))))
  }

  /** What becomes of each input, in their order. Those not yet begun are left out when `signal` is aborted. */
  async add(asked: Asked[], signal: AbortSignal): Promise<Outcome[]> {
    const request: Ticket[] = []
    const outcomes = asked.map(({ input, options }) => new Promise<Outcome>((done) => request.push({ input, options, key: JSON.stringify(options), done })))
    this.requests.push(request)
    this.waiting += request.length
    const leave = () => {
      this.waiting -= request.length
      for (const { done } of request.splice(0)) done({ error: new ConanError('ABORTED', 'the client has gone') })
    }
    signal.addEventListener('abort', leave, { once: true })
    this.start()
    try {
      return await Promise.all(outcomes)
    } finally {
      signal.removeEventListener('abort', leave)
    }
  }

  /** When nothing is left to do. */
  async drained(): Promise<void> {
    if (this.running || this.waiting) await new Promise<void>((resolve) => this.idle.push(resolve))
  }

  private start(): void {
    while (this.running < calls) {
      const tickets = this.take()
      if (tickets.length === 0) break
      this.running++
      this.pass(tickets).finally(() => {
        this.running--
        this.start()
      })
    }
    if (this.running === 0 && this.waiting === 0) for (const resolve of this.idle.splice(0)) resolve()
  }

  /** The next inputs of one key; requests that have more go to the end of the line. */
  private take(): Ticket[] {
    this.requests = this.requests.filter((request) => request.length > 0)
    const key = this.requests[0]?.[0]?.key
    const taken: Ticket[] = []
    const later: Ticket[][] = []
    for (const request of this.requests) {
      let own = 0
      while (own < share && taken.length + own < most && request[own]?.key === key) own++
      taken.push(...request.splice(0, own))
      if (own > 0) later.push(request)
    }
    this.requests = [...this.requests.filter((request) => !later.includes(request)), ...later]
    this.waiting -= taken.length
    return taken
  }

  private async pass(tickets: Ticket[]): Promise<void> {
    const begun = performance.now()
    const open = new Set(tickets)
    const answer = (ticket: Ticket, outcome: Outcome) => {
      open.delete(ticket)
      ticket.done(outcome)
    }
    try {
      const vectors = this.model.embedStream(
        tickets.map(({ input }) => input),
        { ...tickets[0]!.options, onError: 'skip' },
      )
      for await (const { index, vector, tokens, error } of vectors) answer(tickets[index]!, error ? { error } : { vector, tokens })
    } catch (error) {
      // What concerns one input alone is skipped; this is the options, or the machine.
      for (const ticket of open) answer(ticket, { error: asConanError(error) })
    }
    const rate = tickets.length / Math.max(1e-3, (performance.now() - begun) / 1000)
    this.rate = this.rate ? 0.8 * this.rate + 0.2 * rate : rate
  }
}
