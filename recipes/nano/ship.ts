// The model that comes with the package: the first seed's rehearsed one, in bfloat16, without the papers of its training.
//   npx tsx recipes/nano/ship.ts
import { rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fuse } from '../../lib'
import { questions } from './data'
import { byModality, tested } from './measure'
import { settings, work } from './settings'
import { shares, studyFolder } from './study'

async function main() {
  const out = path.join(__dirname, '../../models/conan-nano')
  rmSync(out, { recursive: true, force: true })
  await fuse({ merge_method: 'passthrough', models: [{ model: path.join(studyFolder(0), 'rehearsed') }], dtype: 'bfloat16' }, { out })
  for (const name of ['fusion-manifest.json', 'training-report.json', 'training.html', 'adapter'])
    rmSync(path.join(out, name), { recursive: true, force: true })
  const { found, sts } = await tested(out, await questions('test', settings.words, settings.test))
  writeFileSync(
    path.join(out, 'README.md'),
    `# conan-nano

13 million parameters, 256 dimensions, one space for English texts, pictures, films, pages and sounds. Made by this project's code alone:
[recipes/nano](../../recipes/nano/README.md) says how, [RESULTS.md](../../recipes/nano/RESULTS.md) what was measured. It is an example that
fits into a package, not a model to build a product on: pictures are drawings and icons, sounds are single words, digits and ten noises.

Text was learnt from the vectors of all-MiniLM-L6-v2 (Apache-2.0); no weight of any other model is in it. Licence: Apache-2.0.

STS-B dev (Spearman): ${sts.toFixed(3)}. On test data: ${shares(byModality(found))}.
`,
  )
  console.log(`STS-B ${sts.toFixed(4)}; ${shares(byModality(found))}`)
  console.table(found)
  console.log(out, work)
}

main()
