// What Python sees of the context mixer beside its coders.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_mixer(nanobind::module_& m);

}  // namespace lmcodec
