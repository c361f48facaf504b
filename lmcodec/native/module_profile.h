// A profile as Python holds it.
#pragma once

#include <cstdint>
#include <vector>

#include "context_mixer.h"

namespace lmcodec {

struct ProfileData {
  Profile profile;
  std::vector<std::uint32_t> learned;
};

}  // namespace lmcodec
