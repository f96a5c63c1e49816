// Sound: resampling and the log-mel spectrogram of Whisper's feature extractor.
#pragma once
#include <cstdint>
#include <vector>

namespace conan::media {

/// `samples` at rate `from`, as they would be at rate `to`: band-limited by a Kaiser-windowed sinc that passes 91 % of the narrower
/// band and keeps aliases 136 dB down, about as soxr does at its high quality. Beyond its ends the sound is silent. [ceil(n * to / from)] Error
/// INVALID_INPUT where a sample is not finite.
std::vector<float> resample(const float* samples, int64_t n, int64_t from, int64_t to);

struct MelLayout {
  int64_t rate = 16000, window = 400, hop = 160, bins = 80;
};

/// Frames that log_mel makes of `samples` samples.
int64_t mel_frames(int64_t samples, const MelLayout& layout);

/// [mel_frames, bins]: power spectrum under a periodic Hann window around every hop (the ends mirrored), through Slaney's mel filters
/// up to 8 kHz, then (max(log10 p, max log10 p - 8) + 4) / 4 (Radford et al. 2023; transformers, WhisperFeatureExtractor).
/// `samples` are at least window / 2 + 1.
void log_mel(const float* samples, int64_t n, const MelLayout& layout, float* out);

}  // namespace conan::media
