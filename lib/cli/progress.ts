// A bar on a terminal, JSON lines elsewhere if asked for; always on stderr, so that stdout stays data.
import { Presets, SingleBar } from 'cli-progress'

export interface Progress {
  update(done: number, total: number | undefined, worked: number): void
  stop(): void
}

/** `unit`: what the third number of update() counts. */
export function progress(json: boolean, unit: 'tokens' | 'MB' | 'items' = 'tokens'): Progress {
  const start = performance.now()
  const rate = (worked: number) => Math.round(worked / Math.max(1e-3, (performance.now() - start) / 1000))
  if (process.stderr.isTTY && !json) {
    const bar = new SingleBar({ format: `{bar} {value}/{total} | {rate} ${unit}/s | {eta_formatted} left`, hideCursor: true }, Presets.shades_classic)
    let running = false
    return {
      update(done, total, worked) {
        if (!running) bar.start(total ?? done, 0, { rate: 0 })
        running = true
        bar.setTotal(Math.max(total ?? done, done))
        bar.update(done, { rate: rate(worked) })
      },
      stop() {
        if (running) bar.stop()
      },
    }
  }
  let last = 0
  return {
    update(done, total, worked) {
      if (!json || performance.now() - last < 1000) return
      last = performance.now()
      const pace = unit === 'tokens' ? { tokens: worked, tokensPerSecond: rate(worked) } : { unit, perSecond: rate(worked) }
      console.error(JSON.stringify({ done, total, ...pace }))
    },
    stop() {},
  }
}
