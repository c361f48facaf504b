// The Python face of the executor of integer models.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_network(nanobind::module_& m);

}  // namespace lmcodec
