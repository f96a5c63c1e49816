// Self-contained reports: HTML with inline SVG, no scripts, nothing fetched.

export const escapeHtml = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)

export const palette = ['#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#9c6b4e', '#97bbf5', '#a463f2', '#3ca951']

export interface Line {
  name: string
  values: (number | undefined)[]
}

/** Round numbers that cover low to high. */
function ticks(low: number, high: number): number[] {
  const raw = (high - low) / 4 || 1
  const power = 10 ** Math.floor(Math.log10(raw))
  const step = ([1, 2, 2.5, 5, 10].find((f) => f * power >= raw) ?? 10) * power
  const out: number[] = []
  for (let at = Math.floor(low / step) * step; at <= high + step * 0.999; at += step) out.push(Number(at.toPrecision(12)))
  return out
}

const [width, height, left, right, top, bottom] = [720, 260, 56, 12, 28, 34]
const colorOf = (n: number) => palette[n % palette.length] as string

/** Axes and lines as the inside of an SVG; undefined where there is nothing to draw. */
function drawing(labels: string[], lines: Line[]): string | undefined {
  const values = lines.flatMap((line) => line.values.filter((value): value is number => value !== undefined && Number.isFinite(value)))
  if (values.length === 0) return undefined
  const marks = ticks(Math.min(...values, 0), Math.max(...values))
  const [low, high] = [marks[0] as number, marks.at(-1) as number]
  const x = (i: number) => left + ((width - left - right) * i) / Math.max(1, labels.length - 1)
  const y = (value: number) => height - bottom - ((height - top - bottom) * (value - low)) / (high - low || 1)
  const every = Math.ceil(labels.length / 10)
  const grid = marks.map(
    (mark) =>
      `<line x1="${left}" x2="${width - right}" y1="${y(mark)}" y2="${y(mark)}" class="grid"/><text x="${left - 6}" y="${y(mark) + 4}" text-anchor="end">${mark}</text>`,
  )
  const names = labels.map((label, i) =>
    i % every === 0 ? `<text x="${x(i)}" y="${height - bottom + 16}" text-anchor="middle">${escapeHtml(label)}</text>` : '',
  )
  const drawn = lines.map((line, n) => {
    const points = line.values.map((value, i) => (value === undefined ? '' : `${x(i).toFixed(1)},${y(value).toFixed(1)}`)).filter(Boolean)
    const dots = points.map((point) => `<circle cx="${point.split(',')[0]}" cy="${point.split(',')[1]}" r="2.5" fill="${colorOf(n)}"/>`).join('')
    return `<polyline points="${points.join(' ')}" fill="none" stroke="${colorOf(n)}" stroke-width="1.5"/>${dots}`
  })
  return [...grid, ...names, ...drawn].join('')
}

/** Lines over the same places. `labels` name the places; about ten of them are written. */
export function lineChart(title: string, labels: string[], lines: Line[], unit: string): string {
  const inside = drawing(labels, lines)
  if (inside === undefined) return ''
  const legend = lines.map((line, n) => `<span><i style="background:${colorOf(n)}"></i>${escapeHtml(line.name)}</span>`)
  return `<figure><figcaption>${escapeHtml(title)} <small>${escapeHtml(unit)}</small></figcaption>
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">${inside}</svg>
<div class="legend">${legend.join('')}</div></figure>`
}

/** The same as an SVG file of its own, with its title and legend inside. */
export function lineSvg(title: string, labels: string[], lines: Line[], unit: string): string {
  const legend = lines.map((line, n) => {
    const y = height + 14 + 18 * n
    return `<rect x="${left}" y="${y - 9}" width="10" height="10" rx="2" fill="${colorOf(n)}"/><text x="${left + 16}" y="${y}">${escapeHtml(line.name)}</text>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height + 20 + 18 * lines.length}" width="${width}">
<style>text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#e5e5e5}</style><rect width="100%" height="100%" fill="#fff"/>
<text x="${left}" y="16"><tspan font-weight="600">${escapeHtml(title)}</tspan>  ${escapeHtml(unit)}</text>${drawing(labels, lines) ?? ''}${legend.join('')}</svg>
`
}

/** A table; numbers are shown with four digits, the first column is text. */
export function table(head: string[], rows: (string | number | undefined)[][]): string {
  const cell = (value: string | number | undefined) =>
    typeof value === 'number' ? `<td class="n">${Number(value.toPrecision(4))}</td>` : `<td>${escapeHtml(value ?? '')}</td>`
  return `<table><thead><tr>${head.map((name) => `<th>${escapeHtml(name)}</th>`).join('')}</tr></thead><tbody>${rows.map((row) => `<tr>${row.map(cell).join('')}</tr>`).join('\n')}</tbody></table>`
}

export function page(title: string, parts: string[]): string {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escapeHtml(title)}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#222;background:#fff}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;font-size:13px;margin:1em 0}td,th{padding:2px 10px;border-bottom:1px solid #ddd;text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1.5em 0}figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#555}.grid{stroke:#e5e5e5}
.legend span{margin-right:1.2em;font-size:13px}.legend i{display:inline-block;width:10px;height:10px;margin-right:5px;border-radius:2px}</style>
<h1>${escapeHtml(title)}</h1>
${parts.join('\n')}
</html>
`
}
