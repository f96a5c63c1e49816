import { defineConfig } from 'tsup'

const common = { target: 'node20', shims: true, splitting: false } as const // shims: __dirname in ES modules

export default defineConfig([
  { ...common, entry: { index: 'lib/index.ts' }, format: ['esm', 'cjs'], dts: true, clean: true },
  { ...common, entry: { cli: 'lib/cli/cli.ts', 'pdf-worker': 'lib/media/pdf-worker.ts', 'audio-worker': 'lib/media/audio-worker.ts' }, format: ['cjs'] },
])
