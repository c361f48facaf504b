// The face of blocks of numbers, and of the check that goes with them.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_planes(nanobind::module_& m);

}  // namespace lmcodec
