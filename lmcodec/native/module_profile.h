// A profile as Python holds it.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "context_mixer.h"

namespace lmcodec {

struct ProfileData {
  Profile profile;
  std::vector<std::uint32_t> learned;
};

// The profile with a slot table of up to 2^enlarge times its size; what it learned is the same.
inline Profile enlarged(Profile profile, int enlarge) {
  if (enlarge < 0 || enlarge > 3) throw nanobind::value_error("a table is enlarged by 0 to 3 powers of two");
  profile.table_log2 += enlarge;
  return profile;
}

}  // namespace lmcodec
