// The Python face of the executor of integer models.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_recurrent(nanobind::module_& m);

}  // namespace lmcodec
