import { defineConfig } from 'tsup'

export default defineConfig({
  entry: { index: 'lib/index.ts', cli: 'lib/cli/cli.ts' },
  format: ['esm', 'cjs'],
  target: 'node20',
  dts: { entry: { index: 'lib/index.ts' } },
  shims: true, // __dirname in ES modules
  clean: true,
  splitting: false,
  sourcemap: true,
})
