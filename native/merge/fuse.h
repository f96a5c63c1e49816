// Carries out a fusion plan: reads parents through mmap, makes one output tensor after the other and writes each where
// it belongs in the output's files, so that memory does not depend on the size of the model. Which tensors there are,
// and how each is made, was decided by lib/fuse/plan.ts; the plan is JSON:
//
//   output       directory for the files, which exists
//   identity     what the inputs were; a journal of another identity is not resumed
//   threads, seed, device
//   checkpoints  [{directory, adapters: [directory]}]
//   files        [{name, tensors: [index]}]
//   tensors      [{name, shape, dtype, algorithm, options, base: ref, parents: [ref + {weight, density, gamma, epsilon}],
//                  patches: [{row, source: ref, sourceRow}]}]
//   ref          {checkpoint, tensor}, or {shape, runs: [[rows, [[ref, firstRow], ...]], ...]} for rows in another order
#pragma once
#include <atomic>
#include <functional>
#include <string>

namespace conan::merge {

/// Returns JSON: {resumed, tensors: [{tensor, checksum, norms, conflicts}]} in the plan's order. While it runs, and if it is ended
/// by force, fusion-journal.jsonl in the output directory lists the finished tensors; a run with the same plan goes on
/// from there. progress(done, total) counts bytes of the output.
std::string fuse(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace conan::merge
