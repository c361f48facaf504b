#include "module_mixer.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "context_mixer.h"
#include "mixing.h"
#include "module_profile.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

std::vector<std::string> mixing_isas() {
  int n;
  const MixingKernels* kernels = mixing_kernels(&n);
  std::vector<std::string> names;
  for (int i = 0; i < n; ++i) names.emplace_back(kernels[i].isa);
  return names;
}

nb::list names_of(const char* const* first, const char* const* last) {
  nb::list names;
  for (; first != last; ++first) names.append(nb::str(*first));
  return names;
}

}  // namespace

std::size_t mixer_memory_nbytes(const ProfileData& data, std::uint32_t block_nbytes, int streams, bool chained,
                                int enlarge, std::uint32_t tables_nbytes) {
  if (streams < 1 || block_nbytes > kBlockMax || tables_nbytes > kBlockMax)
    throw nb::value_error("a block has a stream or more, and up to 16 MiB");
  const std::uint32_t tables = std::max(tables_nbytes ? tables_nbytes : block_nbytes, 1u);
  return ContextMixer::memory_nbytes(enlarged(data.profile, enlarge), block_nbytes, tables, streams, chained);
}

void bind_mixer(nb::module_& m) {
  m.def("mixing_isas", &mixing_isas, "Instruction sets the mixer can use here, the best first.");
  m.def("mixer_memory_nbytes", &mixer_memory_nbytes, nb::arg("profile"), nb::arg("block_nbytes"), nb::arg("streams") = 1,
        nb::arg("chained") = false, nb::arg("enlarge") = 0, nb::arg("tables_nbytes") = 0,
        "Bytes that the context models take at most which code such a block: tables, maps, weights, streams, history.");
  // Of the enums Feature and Selector, in order; LM_...: those that only profiles for a language model may have.
  m.attr("FEATURES") = names_of(kFeatureNames, kFeatureNames + kFeatureCount);
  m.attr("SELECTORS") = names_of(kSelectorNames, kSelectorNames + kSelectorCount);
  m.attr("LM_FEATURES") = names_of(kFeatureNames + kBegun, kFeatureNames + kFeatureCount);
  m.attr("LM_SELECTORS") = names_of(kSelectorNames + kSelectLm, kSelectorNames + kSelectorCount);
}

}  // namespace lmcodec
