// What Python sees of the context mixer beside its loops.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>

namespace lmcodec {

struct ProfileData;

// ContextMixer::memory_nbytes() of a profile as Python holds it. tables_nbytes: 0 for tables as the block asks for them.
std::size_t mixer_memory_nbytes(const ProfileData& data, std::uint32_t block_nbytes, int streams, bool chained, int enlarge,
                                std::uint32_t tables_nbytes);

void bind_mixer(nanobind::module_& m);

}  // namespace lmcodec
