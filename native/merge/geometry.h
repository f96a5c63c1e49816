// The geometry of task vectors, and low-rank adapters from them. Plans and results are JSON:
//
//   threads, checkpoints  as in fuse.h
//   base                  index of the checkpoint that task vectors are taken from
//   tensors               [{name, shape}], in all of them
#pragma once
#include <atomic>
#include <functional>
#include <string>

namespace conan::merge {

/// Of every tensor: [{tensor, base: norm, gram: [[inner products of task vectors]], conflicts: [[entries where two of them
/// point in opposite directions]], both: [[entries that both of them change]]}], over the checkpoints but the base.
std::string geometry(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress);

/// Low-rank factors of one checkpoint's task vectors: writes `output` (an adapter_model.safetensors as PEFT names it) for the
/// plan's tensors, all matrices. Further keys of the plan: rank, or energy (the share of the squared norm to keep) with
/// maxRank; seed. Returns [{tensor, rank, norm, left: norm of what the factors leave out}]; a task vector of zero has rank 0
/// and is not written.
std::string extract_lora(const std::string& plan, const std::atomic<bool>& cancelled, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace conan::merge
