// Makes what lies in media/: drawings (SVG), clips of them (animated WebP), a handbook (PDF), spoken words and noises (Ogg). Everything is
// drawn, written or computed here, so that it belongs to this project. Needs espeak-ng and ffmpeg; run it only to change the media.
import { execFileSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import sharp from 'sharp'

const media = path.join(path.dirname(fileURLToPath(import.meta.url)), 'media')
mkdirSync(media, { recursive: true })

/** On a square of 128. */
const svg = (inside, background = '#ffffff') =>
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="128" height="128"><rect width="128" height="128" fill="${background}"/>${inside}</svg>`
const rays = Array.from({ length: 12 }, (_, i) => `<rect x="61" y="6" width="6" height="20" rx="3" fill="#f9a825" transform="rotate(${30 * i} 64 64)"/>`).join('')
const star = (x, y, r, fill = '#fbc02d') => {
  const points = Array.from({ length: 10 }, (_, i) => {
    const [radius, angle] = [i % 2 ? r * 0.42 : r, (Math.PI * i) / 5 - Math.PI / 2]
    return `${(x + radius * Math.cos(angle)).toFixed(1)},${(y + radius * Math.sin(angle)).toFixed(1)}`
  })
  return `<polygon points="${points.join(' ')}" fill="${fill}"/>`
}
const parts = {
  sun: `${rays}<circle cx="64" cy="64" r="30" fill="#fdd835"/>`,
  fish: '<path d="M20 64C36 36 76 34 96 64C76 94 36 92 20 64Z" fill="#ff8a3d"/><path d="M90 64L118 42V86Z" fill="#f4511e"/><circle cx="42" cy="58" r="6" fill="#fff"/><circle cx="41" cy="58" r="3" fill="#222"/><path d="M60 44Q72 64 60 84" fill="none" stroke="#f4511e" stroke-width="4"/>',
  car: '<path d="M10 84V68L28 64L42 44H88L104 64L118 70V84Z" fill="#e53935"/><path d="M46 50H62V64H36Z" fill="#b3e5fc"/><path d="M68 50H84L94 64H68Z" fill="#b3e5fc"/><circle cx="36" cy="86" r="13" fill="#333"/><circle cx="36" cy="86" r="6" fill="#bbb"/><circle cx="94" cy="86" r="13" fill="#333"/><circle cx="94" cy="86" r="6" fill="#bbb"/>',
  balloon: '<ellipse cx="64" cy="50" rx="34" ry="40" fill="#e53935"/><path d="M58 96L64 88L70 96Z" fill="#b71c1c"/><path d="M64 96Q56 108 66 124" fill="none" stroke="#666" stroke-width="2"/><ellipse cx="52" cy="36" rx="8" ry="12" fill="#ff8a80" opacity=".7"/>',
  moon: '<path d="M84 14A52 52 0 1 0 114 92A44 44 0 0 1 84 14Z" fill="#fff59d"/>',
}
const pictures = {
  sun: svg(parts.sun, '#bbdefb'),
  'crescent-moon': svg(parts.moon + star(96, 40, 8) + star(106, 66, 5), '#1a237e'),
  star: svg(star(64, 66, 54)),
  house: svg('<rect x="26" y="58" width="76" height="56" fill="#ffe0b2"/><path d="M14 62L64 18L114 62Z" fill="#c62828"/><rect x="54" y="80" width="20" height="34" fill="#6d4c41"/><rect x="34" y="70" width="16" height="16" fill="#81d4fa"/><rect x="78" y="70" width="16" height="16" fill="#81d4fa"/>', '#e1f5fe'),
  tree: svg('<rect x="56" y="76" width="16" height="44" fill="#795548"/><circle cx="64" cy="46" r="36" fill="#43a047"/><circle cx="40" cy="62" r="22" fill="#4caf50"/><circle cx="90" cy="60" r="22" fill="#388e3c"/>'),
  'red-apple': svg('<path d="M64 40C40 22 14 44 24 80C32 110 52 120 64 112C76 120 96 110 104 80C114 44 88 22 64 40Z" fill="#d32f2f"/><path d="M64 40Q62 24 70 14" fill="none" stroke="#5d4037" stroke-width="5"/><path d="M70 26Q92 10 98 26Q84 36 70 26Z" fill="#66bb6a"/>'),
  fish: svg(parts.fish, '#b3e5fc'),
  car: svg(parts.car),
  sailboat: svg('<path d="M16 92H112L98 114H30Z" fill="#8d6e63"/><rect x="60" y="14" width="5" height="78" fill="#5d4037"/><path d="M68 18L108 84H68Z" fill="#fff" stroke="#90a4ae"/><path d="M57 28L24 84H57Z" fill="#ef5350"/>', '#81d4fa'),
  umbrella: svg('<path d="M10 66A54 54 0 0 1 118 66Q109 56 100 66Q91 56 82 66Q73 56 64 66Q55 56 46 66Q37 56 28 66Q19 56 10 66Z" fill="#7e57c2"/><path d="M64 60V106Q64 118 52 116Q44 114 46 104" fill="none" stroke="#5d4037" stroke-width="5"/>'),
  'red-heart': svg('<path d="M64 114C18 78 8 56 16 38C26 16 54 18 64 42C74 18 102 16 112 38C120 56 110 78 64 114Z" fill="#e53935"/>'),
  sunflower: svg(`<rect x="60" y="66" width="8" height="58" fill="#388e3c"/>${Array.from({ length: 14 }, (_, i) => `<ellipse cx="64" cy="20" rx="9" ry="18" fill="#fdd835" transform="rotate(${(360 * i) / 14} 64 50)"/>`).join('')}<circle cx="64" cy="50" r="18" fill="#5d4037"/>`),
  snowman: svg('<circle cx="64" cy="92" r="30" fill="#fff" stroke="#b0bec5"/><circle cx="64" cy="44" r="22" fill="#fff" stroke="#b0bec5"/><rect x="44" y="8" width="40" height="18" fill="#333"/><rect x="36" y="24" width="56" height="5" fill="#333"/><circle cx="56" cy="40" r="3"/><circle cx="72" cy="40" r="3"/><path d="M64 46L84 50L64 52Z" fill="#fb8c00"/><circle cx="64" cy="80" r="3"/><circle cx="64" cy="92" r="3"/>', '#90caf9'),
  'mantelpiece-clock': svg('<circle cx="64" cy="64" r="52" fill="#6d4c41"/><circle cx="64" cy="64" r="43" fill="#fffde7"/><path d="M64 64V32M64 64L86 74" stroke="#222" stroke-width="5" stroke-linecap="round"/><circle cx="64" cy="64" r="4"/>'),
  balloon: svg(parts.balloon, '#e3f2fd'),
  rainbow: svg(['#e53935', '#fb8c00', '#fdd835', '#43a047', '#1e88e5', '#8e24aa'].map((color, i) => `<path d="M${10 + 8 * i} 104A${54 - 8 * i} ${54 - 8 * i} 0 0 1 ${118 - 8 * i} 104" fill="none" stroke="${color}" stroke-width="8"/>`).join('') + '<ellipse cx="20" cy="108" rx="18" ry="10" fill="#fff"/><ellipse cx="108" cy="108" rx="18" ry="10" fill="#fff"/>', '#bbdefb'),
}
for (const [name, text] of Object.entries(pictures)) writeFileSync(path.join(media, `${name}.svg`), text)

/** Twelve frames in 1.2 seconds. */
const clips = {
  'sun-rising': (t) => svg(`<g transform="translate(0 ${90 - 110 * t})">${parts.sun}</g><rect y="92" width="128" height="36" fill="#43a047"/>`, '#bbdefb'),
  'car-driving': (t) => svg(`<rect y="98" width="128" height="30" fill="#9e9e9e"/><g transform="translate(${-80 + 160 * t} 0)">${parts.car}</g>`, '#e1f5fe'),
  'fish-swimming': (t) => svg(`<g transform="translate(${60 - 120 * t} ${8 * Math.sin(6.3 * t)})">${parts.fish}</g>`, '#4fc3f7'),
  'balloon-flying': (t) => svg(`<g transform="translate(${6 * Math.sin(6.3 * t)} ${70 - 130 * t})">${parts.balloon}</g>`, '#e3f2fd'),
  'heart-beating': (t) => svg(`<g transform="translate(64 66) scale(${0.75 + 0.25 * Math.abs(Math.sin(6.3 * t))}) translate(-64 -66)"><path d="M64 114C18 78 8 56 16 38C26 16 54 18 64 42C74 18 102 16 112 38C120 56 110 78 64 114Z" fill="#e53935"/></g>`),
}
for (const [name, frame] of Object.entries(clips)) {
  const frames = await Promise.all(Array.from({ length: 12 }, (_, i) => sharp(Buffer.from(frame(i / 11))).resize(128, 128).png().toBuffer()))
  await sharp(frames, { join: { animated: true } }).webp({ quality: 70, delay: 100, loop: 0 }).toFile(path.join(media, `${name}.webp`))
}

/** Pages of A5 with a title and a few lines, as the smallest PDF that says so. */
const handbook = [
  ['Installing on Debian', 'Add the archive to the list of sources. Update the package index. Install the package and its dependencies with apt. Reboot if a new kernel was installed.'],
  ['Shell variables and quoting', 'A variable is set by its name, an equals sign and a value without blanks between them. Double quotes keep blanks and expand variables, single quotes keep everything as it is.'],
  ['Plotting data from a file', 'The plot command draws columns of a data file. Choose points or lines, name the axes, set the range of x and y, and write the graph to a PNG file.'],
  ['Matrices and linear algebra', 'A matrix is written in brackets, rows apart by semicolons. The operator for left division solves a system of linear equations. Eigenvalues come from eig.'],
  ['Licences and copyright', 'Every package states its licence and its copyright holders. Software in the main section may be used, studied, changed and passed on by anyone.'],
  ['Reporting a bug', 'Say which version you use, what you did, what you expected and what happened instead. Attach the log. One report for one problem.'],
]
const pdfText = (text) => text.replace(/[\\()]/g, '\\$&')
const lines = (text) => text.match(/.{1,52}(\s|$)/g).map((line) => line.trim())
const objects = ['<< /Type /Catalog /Pages 2 0 R >>', `<< /Type /Pages /Count ${handbook.length} /Kids [${handbook.map((_, i) => `${4 + 2 * i} 0 R`).join(' ')}] >>`, '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>']
for (const [i, [title, text]] of handbook.entries()) {
  const stream = `BT /F 20 Tf 40 530 Td (${pdfText(title)}) Tj /F 12 Tf 0 -36 Td 18 TL ${lines(text).map((line) => `(${pdfText(line)}) Tj T*`).join(' ')} ET`
  objects.push(`<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 595] /Resources << /Font << /F 3 0 R >> >> /Contents ${5 + 2 * i} 0 R >>`, `<< /Length ${stream.length} >>\nstream\n${stream}\nendstream`)
}
let pdf = '%PDF-1.4\n'
const offsets = objects.map((object, i) => {
  const at = pdf.length
  pdf += `${i + 1} 0 obj\n${object}\nendobj\n`
  return at
})
const xref = pdf.length
pdf += `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${offsets.map((at) => `${String(at).padStart(10, '0')} 00000 n \n`).join('')}trailer << /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${xref}\n%%EOF\n`
writeFileSync(path.join(media, 'handbook.pdf'), pdf)

const ogg = (source, name) => execFileSync('ffmpeg', ['-v', 'error', '-y', '-i', source, '-ac', '1', '-ar', '16000', '-c:a', 'libvorbis', '-q:a', '3', path.join(media, `${name}.ogg`)])
for (const [word, voice] of [['sun', 'en-us+f3'], ['rainbow', 'en-gb+m2'], ['umbrella', 'en-us+m4'], ['house', 'en-gb+Michael'], ['fish', 'en-us+f3'], ['seven', 'en-gb+m2'], ['scientist', 'en-gb-x-rp+f5'], ['newspaper', 'en-us+m4']]) {
  const wav = path.join(media, 'spoken.tmp.wav')
  execFileSync('espeak-ng', ['-v', voice, '-s', '150', '-w', wav, word])
  ogg(wav, `spoken-${word}`)
  rmSync(wav)
}
